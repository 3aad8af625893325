"""The process whose forks are Beam's local workers: `python -m … LAUNCHER THREADS SOCKET`; see `local_workers`.

A worker is Beam's own, with three differences. Its messages go to the job (not twice, and not every detail,
to the terminal); it ends soon after the job that launched it, where Beam's goes on with its shards
after a killed job, beside the next one; and the numerical libraries take their share of the cores.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from types import FrameType

_LOOK_SECONDS = 0.5


def main(launcher: int, threads: int, listener: socket.socket) -> int:
    """Forks a worker for each that connects, until process `launcher` is gone or a worker has crashed.

    Returns:
      The exit status: 1 if a worker has crashed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: the launcher decides
    # Python warns of a fork beside other threads. There is one, of a memory allocator that allows for it.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # Before the imports: the libraries read these when they are loaded.
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", str(threads))
    # With a handler there, an early warning of some library does not set up one that prints.
    logging.getLogger().addHandler(logging.NullHandler())
    from apache_beam.runners.worker import sdk_worker_main

    from tokenize_pipeline import beam_graph  # noqa: F401  what every worker would import

    # It warns that nothing was staged for it, which no local worker needs.
    logging.getLogger(sdk_worker_main.__name__).setLevel(logging.ERROR)
    workers: set[int] = set()
    signal.signal(signal.SIGTERM, _terminate)
    listener.settimeout(_LOOK_SECONDS)
    status = 0
    with contextlib.suppress(_Terminated):
        while os.getppid() == launcher and not status:
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                workers.add(_fork(connection, listener, lambda: sdk_worker_main.main(sys.argv)))
                connection.close()
            status = _reap(workers)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    return status


class _Terminated(BaseException):
    """The job has ended, and so does this process."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _reap(workers: set[int]) -> int:
    """Forgets the workers that have ended; 1 if one of them did not end well."""
    status = 0
    for worker in list(workers):
        ended, how = os.waitpid(worker, os.WNOHANG)
        if ended:
            workers.remove(worker)
            status |= how != 0
    return status


def _fork(connection: socket.socket, listener: socket.socket, work: Callable[[], None]) -> int:
    """Process id of a new worker, which does `work` with the environment that `connection` sends."""
    server = os.getpid()
    worker = os.fork()
    if worker:
        return worker
    status = 1
    try:
        listener.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=_die_with, args=(server,), daemon=True).start()
        with connection.makefile("rb") as lines:
            os.environ.update(json.loads(lines.readline()))
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: the rest of this process is the server's, not the worker's.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _die_with(server: int) -> None:
    """Ends this process when its parent, process `server`, is gone."""
    while os.getppid() == server:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    # At once: nothing of all that was imported needs a farewell.
    os._exit(main(int(sys.argv[1]), int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3]))))
