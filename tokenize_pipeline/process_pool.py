"""Runs the shards of a job on this machine, in this process or in a pool of worker processes.

`concurrent.futures.ProcessPoolExecutor` does not report which task a killed process was running, and
cannot stop the other processes. So this pool has one pipe per worker and gives each worker one shard
at a time.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import cast

from soda_jax.errors import UserError
from tokenize_pipeline.plan import ShardPlan
from tokenize_pipeline.worker import Job, tokenize_shard

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_shards(job: Job, shards: Sequence[ShardPlan], workers: int) -> None:
    """Tokenizes `shards`.

    Args:
      job: settings that all shards share.
      shards: the unfinished shards of the plan.
      workers: number of processes; 1 = in this process, 0 = one per core.

    Raises:
      UserError: if a worker process died. Finished shards are kept.
    """
    workers = min(workers or os.cpu_count() or 1, len(shards))
    if workers > 1:
        _run_in_processes(job, shards, workers)
    else:
        for shard in shards:
            tokenize_shard(job, shard)


def _run_in_processes(job: Job, shards: Sequence[ShardPlan], workers: int) -> None:
    context = multiprocessing.get_context("spawn")  # a fork copies locks held by other threads
    processes: dict[Connection, BaseProcess] = {}
    pending = iter(shards)
    running: dict[Connection, ShardPlan] = {}

    def start_next(connection: Connection) -> None:
        if (shard := next(pending, None)) is not None:
            running[connection] = shard
            # A broken pipe is reported when the answer is read.
            with contextlib.suppress(OSError):
                connection.send(shard)

    try:
        with _threads_per_process(max(1, (os.cpu_count() or 1) // workers)):
            for _ in range(workers):
                connection, other_end = context.Pipe()
                process = context.Process(target=_work, args=(job, other_end), daemon=True)
                process.start()
                other_end.close()  # the end of the pipe is then seen when the worker dies
                processes[connection] = process
                start_next(connection)
        while running:
            for ready in wait(list(running)):
                connection = cast(Connection, ready)
                shard = running.pop(connection)
                try:
                    error = connection.recv()
                except (EOFError, OSError):
                    raise _worker_died(processes[connection], shard) from None
                if error is not None:
                    raise error
                start_next(connection)
    finally:
        for worker in processes.values():
            worker.kill()
        for connection, worker in processes.items():
            worker.join()
            connection.close()


def _work(job: Job, connection: Connection) -> None:
    """Tokenizes each shard that arrives, and answers with None or the exception."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the job, which ends its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        while True:
            shard = connection.recv()
            try:
                tokenize_shard(job, shard)
                connection.send(None)
            except Exception as error:
                error.add_note(f"raised in a worker process:\n{traceback.format_exc()}")
                connection.send(error)


def _exit_with_parent() -> None:
    """Ends this process when the job was killed, which could not end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _worker_died(process: BaseProcess, shard: ShardPlan) -> UserError:
    process.join()
    code = process.exitcode or 0
    cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    return UserError(
        f"worker process {process.pid} {cause} while it tokenized shard {shard.name} (out of memory?): "
        "run the same command again, with fewer --workers if needed; finished shards are kept"
    )


@contextlib.contextmanager
def _threads_per_process(threads: int) -> Iterator[None]:
    """Sets the thread count of numerical libraries in processes started inside; keeps the user's values.

    The libraries read these variables when they are loaded, so they must be set before the start.
    """
    unset = [name for name in _THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, str(threads)))
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]
