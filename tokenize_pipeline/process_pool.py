"""Tokenizes the shards of a job on this machine, in this process or in a pool of worker processes.

`concurrent.futures.ProcessPoolExecutor` does not report which task a killed process was running.
Therefore, each worker of this pool has a separate pipe and receives one shard at a time.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import cast

from soda_jax.errors import UserError
from tokenize_pipeline.plan import ShardPlan
from tokenize_pipeline.settings import Job
from tokenize_pipeline.worker import tokenize_shard

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_shards(job: Job, shards: Sequence[ShardPlan], workers: int) -> None:
    """Tokenizes `shards` and returns when all are finished.

    Args:
      job: the job; a result of `Job.for_workers`.
      shards: the unfinished shards of the plan.
      workers: number of processes; 1 = in this process, 0 = one per core; at most one per shard.

    Raises:
      UserError: if a worker process died. Finished shards are kept.
      Exception: any exception that a worker raised.
    """
    workers = min(workers or os.cpu_count() or 1, len(shards))
    if workers == 1:
        for shard in shards:
            tokenize_shard(job, shard)
        return
    processes: dict[Connection, BaseProcess] = {}
    running: dict[Connection, ShardPlan] = {}
    pending = iter(shards)

    def start_next(connection: Connection) -> None:
        if (shard := next(pending, None)) is not None:
            running[connection] = shard
            # If the worker has died, `recv` raises below.
            with contextlib.suppress(OSError):
                connection.send(shard)

    try:
        processes |= _start_processes(job, workers)
        for connection in processes:
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
        for connection, process in processes.items():
            process.kill()
            process.join()
            connection.close()


def _start_processes(job: Job, workers: int) -> dict[Connection, BaseProcess]:
    """Starts daemon processes that share the cores; returns a dict from connection to process."""
    context = multiprocessing.get_context("spawn")  # a fork copies locks held by other threads
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Numerical libraries read these variables when they are loaded. The user's values are kept.
    unset = [name for name in _THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, str(threads)))
    processes: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(workers):
            connection, other_end = context.Pipe()
            process = context.Process(target=_work, args=(job, other_end), daemon=True)
            process.start()
            other_end.close()  # so that `recv` fails when the worker dies
            processes[connection] = process
    finally:
        for name in unset:
            del os.environ[name]
    return processes


def _work(job: Job, connection: Connection) -> None:
    """Tokenizes each shard received from `connection`, and sends back None or the exception."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the parent kills its workers
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
    """Ends this process when its parent ends, because a killed parent cannot stop its workers."""
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
