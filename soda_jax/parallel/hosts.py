"""Communication between the processes of a run; does nothing in a single-process run.

All processes must call the functions that communicate in the same order. These functions use the
coordination service of process 0 instead of device collectives, which cannot be canceled and do not
report which process is missing.
"""

import atexit
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from soda_jax.errors import UserError
from soda_jax.parallel import cluster
from soda_jax.parallel.heartbeat import LOST, Heartbeat

# Environment variable and default in seconds.
JOIN = ("SODA_JOIN_SECONDS", 300)
BARRIER = ("SODA_BARRIER_SECONDS", 1800)
HEARTBEAT = ("SODA_LOST_SECONDS", 60)
# jax's own heartbeat is the fallback. Its timeout is longer than ours, so that ours
# fires first.
_JAX_HEARTBEAT, _JAX_SHUTDOWN = 100, 60

_heartbeat: Heartbeat | None = None
_rounds: Counter[str] = Counter()


def start(
    coordinator: str | None = None, process_count: int | None = None, process_id: int | None = None
) -> cluster.ProcessInfo | None:
    """Connects the processes of a run; must be called before any other use of jax.

    Process 0 prints on stderr how the processes were found. After this call, if a process fails, the
    other processes exit too (`heartbeat.py`).

    Args:
      coordinator: `host:port` of process 0; by default from the environment.
      process_count: number of processes; 1 ignores the environment.
      process_id: index of this process, from 0.

    Returns:
      The `ProcessInfo` of this process, or None if the run has a single process.

    Raises:
      UserError: if flags or environment variables are incomplete or invalid.
    """
    global _heartbeat
    join, timeout = _seconds(*JOIN), _seconds(*HEARTBEAT)
    found = cluster.find_processes(coordinator, process_count, process_id, timeout=join)
    if found is None:
        return None
    import jax

    def exit_process() -> None:
        print(
            f"soda: {found}: not all processes connected within {join:g} s ({JOIN[0]}); are the other "
            f"processes running, and can they reach {found.coordinator}?",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)

    # jax's own timeout would abort with a stack trace.
    timer = threading.Timer(join, exit_process)
    timer.daemon = True
    timer.start()
    jax.distributed.initialize(
        found.coordinator,
        found.count,
        found.index,
        local_device_ids=found.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(join) + 30,
        heartbeat_timeout_seconds=max(_JAX_HEARTBEAT, int(1.5 * timeout)),
        shutdown_timeout_seconds=_JAX_SHUTDOWN,
    )
    timer.cancel()
    if found.index == 0:
        print(found, file=sys.stderr, flush=True)
    _heartbeat = Heartbeat(
        _client(), found.index, found.count, timeout, coordinator=found.coordinator
    )
    _heartbeat.start()
    atexit.register(_heartbeat.stop)  # atexit is LIFO: runs before jax's shutdown
    return found


def _client() -> Any:
    """Returns jax's client of the coordination service; jax has no public function for it."""
    from jax._src import distributed

    return distributed.global_state.client


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UserError(f"{variable}={text} must be a number of seconds in (0, 1e6)")
    return seconds


def is_single_process() -> bool:
    """Returns True if the run has one process."""
    import jax

    return jax.process_count() == 1


def is_primary() -> bool:
    """Returns True in process 0, which writes the shared files."""
    import jax

    return jax.process_index() == 0


def barrier(name: str, timeout: float | None = None) -> None:
    """Waits until every process has called `barrier` with the same name.

    After the timeout, the processes that have reached the barrier report which processes are
    missing and exit with status `LOST`.

    Args:
      name: name of the barrier, also used in the error message.
      timeout: seconds; 1800 by default. `SODA_BARRIER_SECONDS` overrides both.
    """
    if is_single_process():
        return
    seconds = _seconds(BARRIER[0], BARRIER[1] if timeout is None else timeout)
    try:
        # The id is reused, because the service never frees the memory of an id.
        _client().wait_at_barrier(f"soda/{name}", int(1000 * seconds))
    except Exception as error:
        end_all(_barrier_failure(name, seconds, error))


def _barrier_failure(name: str, seconds: float, error: Exception) -> str:
    """Returns a message about a failed barrier; sets a key to find the missing processes."""
    import jax

    reason = str(error).partition("\n")[0]
    if "DEADLINE_EXCEEDED" not in reason:
        return f"barrier {name!r} failed: {reason}"
    client, prefix = _client(), f"soda/arrived/{name}"
    client.key_value_set(f"{prefix}/{jax.process_index()}", "", allow_overwrite=True)
    time.sleep(min(1.0, seconds))
    arrived = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(f"{prefix}/")}
    missing = [str(index) for index in range(jax.process_count()) if index not in arrived]
    return (
        f"barrier {name!r}: process {', '.join(missing)} did not arrive within {seconds:g} s "
        f"({BARRIER[0]})"
    )


def gather_json(value: Any, name: str = "gather", timeout: float | None = None) -> list[Any]:
    """Returns the values (plain JSON) of all processes, ordered by process index, in every process.

    See `barrier` for the other arguments.
    """
    import jax

    if is_single_process():
        return [json.loads(json.dumps(value))]
    client, index, number = _client(), jax.process_index(), _rounds[name]
    _rounds[name] += 1
    prefix = f"soda/gather/{name}/{number}/"
    client.key_value_set(f"{prefix}{index}", json.dumps(value))
    barrier(name, timeout)
    values = dict(client.key_value_dir_get(prefix))
    if number:  # all processes are in this round, so all have read the previous one
        client.key_value_delete(f"soda/gather/{name}/{number - 1}/{index}")
    return [json.loads(values[f"{prefix}{process}"]) for process in range(jax.process_count())]


def any_process(flag: bool, name: str = "any process", timeout: float | None = None) -> bool:
    """Returns, in every process, whether `flag` is True in any process; see also `barrier`."""
    return any(gather_json(bool(flag), name, timeout))


def broadcast_json(value: Any, name: str = "broadcast", timeout: float | None = None) -> Any:
    """Returns the value of process 0 (plain JSON) in every process; see also `barrier`."""
    return gather_json(value if is_primary() else None, name, timeout)[0]


@contextmanager
def fail_together(raised_by_all: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Ends all processes if the body raises an exception in one of them.

    Otherwise the other processes would wait in a collective forever. The error is printed in the
    process that raised it and sent to the other processes. All exit with status 2 for a
    `UserError`, 130 for a `KeyboardInterrupt`, and 1 for other exceptions. In a single-process run
    the exception propagates.

    Args:
      raised_by_all: exceptions that all processes raise at the same step or none does; they propagate.
    """
    if is_single_process():
        yield
        return
    try:
        yield
    except raised_by_all:
        raise
    except BaseException as error:
        _end_with(error)


def _end_with(error: BaseException) -> None:
    import jax

    message, status = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", 1
    if isinstance(error, UserError):
        message, status = f"error: {error}", 2
    elif isinstance(error, KeyboardInterrupt):
        message, status = "interrupted", 130
    elif _heartbeat is not None and (
        isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    ):
        # XLA and Gloo raise these errors after another process has failed. Wait, so that the
        # heartbeat can report that process and end this one.
        print(f"soda: process {jax.process_index()}: {message[:300]}", file=sys.stderr, flush=True)
        time.sleep(_heartbeat.detection_time)
    if status == 1:
        traceback.print_exception(error)
    end_all(f"process {jax.process_index()} stopped: {message}", status)


def end_all(message: str, status: int = LOST) -> None:
    """Prints `message` in all processes and ends them immediately; see `heartbeat.py`."""
    if _heartbeat is not None:
        _heartbeat.end_all(message, status)
    print(f"soda: {message}", file=sys.stderr, flush=True)
    os._exit(status)
