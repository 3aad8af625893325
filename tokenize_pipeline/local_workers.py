"""Worker processes on this machine, on their way before Beam asks for them.

Beam takes seconds to import and each of its workers imports it again. Here one process imports it, while
the job itself is being planned, and becomes a worker by a fork whenever Beam wants one. Beam starts a
command for each worker: ours hands over what the worker needs to know and waits for its end.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence

from soda_jax.errors import UserError
from tokenize_pipeline import _hand_over

# Beam's own DirectRunner first tries a runner that downloads a program, and only then the one that is
# part of the library. We always take the latter.
LOCAL_RUNNER = "DirectRunner"
_LOOK_SECONDS = 0.2


class LocalWorkers:
    """The process from which workers are forked.

    Attributes:
      command: what Beam is to run for each worker.
    """

    def __init__(self, server: subprocess.Popen[bytes], address: str):
        """Args: server: the process. address: path of the socket where it waits."""
        self._server = server
        self.command = (sys.executable, "-I", "-S", _hand_over.__file__, address)

    def run(self, work: Callable[[], None]) -> None:
        """Calls `work`, which runs a graph on the workers, and does not wait for ever if one dies.

        Raises:
          UserError: if a worker has ended before its time. Beam would not notice.
        """
        failed: list[BaseException] = []

        def call() -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=call, daemon=True)
        with _without_broken_connections():
            thread.start()
            while thread.is_alive():
                thread.join(_LOOK_SECONDS)
                if thread.is_alive() and self._server.poll() is not None:
                    raise UserError(
                        "a worker process was killed or has crashed (memory may have been short): run "
                        "the same command again, with fewer workers if need be; finished shards are kept"
                    )
        if failed:
            raise failed[0]


@contextlib.contextmanager
def _without_broken_connections() -> Iterator[None]:
    """Keeps the tracebacks of Beam's threads that lost a worker from burying the one line that tells it."""
    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.exc_type.__name__ != "RpcError":
            usual(args)

    threading.excepthook = hook
    yield
    # Not after an exception: those threads notice a moment later.
    threading.excepthook = usual


@contextlib.contextmanager
def local_workers(runner: str, flags: Sequence[str]) -> Iterator[LocalWorkers | None]:
    """Starts what the options of Beam ask for; None where the work stays in this process or goes elsewhere.

    Args:
      runner: name of the Beam runner.
      flags: further options for Beam, as on a command line.
    """
    processes = _processes(runner, flags)
    if not processes:
        yield None
        return
    threads = max(1, (os.cpu_count() or 1) // processes)
    with tempfile.TemporaryDirectory(prefix="soda-") as folder, contextlib.ExitStack() as stack:
        address = os.path.join(folder, "workers")
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(address)
        listener.listen(processes)
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "tokenize_pipeline.beam_worker"),
                *map(str, (os.getpid(), threads, listener.fileno())),
            ],
            pass_fds=[listener.fileno()],
        )
        listener.close()
        try:
            yield LocalWorkers(server, address)
        finally:
            server.terminate()  # it takes its workers with it
            server.wait()


def _processes(runner: str, flags: Sequence[str]) -> int:
    """Number of local worker processes that the options ask for; 0 for none.

    Read without Beam, whose own reading of them comes later and complains of what is wrong.
    """
    if runner != LOCAL_RUNNER:
        return 0
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--direct_running_mode", default="in_memory")
    parser.add_argument("--direct_num_workers", type=int, default=1)
    try:
        found, _ = parser.parse_known_args(list(flags))
    except argparse.ArgumentError:
        return 0
    if found.direct_running_mode != "multi_processing":
        return 0
    return found.direct_num_workers or os.cpu_count() or 1
