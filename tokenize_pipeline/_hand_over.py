"""The command that Beam runs for a worker: `python -I -S _hand_over.py SOCKET`.

Sends its environment, in which Beam tells a worker all it needs to know, to the process at SOCKET that
turns into the worker, and stays until the worker has ended. It starts in an instant: it imports nothing
but the standard library.
"""

import json
import os
import signal
import socket
import sys


def main(address: str) -> None:
    """Hands over to the process that listens at `address`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the job to end
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(json.dumps(dict(os.environ)).encode("ascii") + b"\n")
        connection.recv(1)  # nothing comes: it returns when the worker is gone


if __name__ == "__main__":
    main(sys.argv[1])
