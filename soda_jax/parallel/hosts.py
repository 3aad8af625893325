"""What the processes of a run tell each other; with one process nothing is sent.

Every process of the run calls these functions, in the same order. They wait for each other, on the
coordination service of process 0 and not on the devices: a collective of the devices cannot be
given up, and a process that does not come is to be named.
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
from soda_jax.parallel import private, startup
from soda_jax.parallel.peers import LOST, Peers

# Seconds, each with the variable that says otherwise. A barrier waits this long unless its caller
# knows better; jax's own heartbeat is the second net, below the two minutes that a loss may take.
JOIN = ("SODA_JOIN_SECONDS", 300)
BARRIER = ("SODA_BARRIER_SECONDS", 1800)
LOSS = ("SODA_LOST_SECONDS", 60)
_HEARTBEAT, _SHUTDOWN = 100, 60

_peers: Peers | None = None
_rounds: Counter[str] = Counter()


def start(
    coordinator: str | None = None, process_count: int | None = None, process_id: int | None = None
) -> startup.Found | None:
    """Joins the processes of a run, before any other use of jax; see `startup.find`.

    Process 0 says on stderr how it was found. From here on a process that is lost ends the others
    (`peers.py`).

    Args:
      coordinator: `host:port` of process 0; without it the environment decides.
      process_count: number of processes; 1: alone, whatever the environment says.
      process_id: number of this process, from 0.

    Returns:
      the place of this process, None if it is alone.

    Raises:
      UserError: if flags or environment say only half of it.
    """
    global _peers
    join, lost = _seconds(*JOIN), _seconds(*LOSS)
    found = startup.find(coordinator, process_count, process_id, seconds=join)
    if found is None:
        return None
    import jax

    def too_late() -> None:
        print(
            f"soda: {found}: not all processes came within {join:g} s ({JOIN[0]}); do the others run, "
            f"and do they reach {found.coordinator}?",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)

    # jax would abort with a stack trace at its own limit.
    timer = threading.Timer(join, too_late)
    timer.daemon = True
    timer.start()
    jax.distributed.initialize(
        found.coordinator,
        found.count,
        found.number,
        local_device_ids=found.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(join) + 30,
        heartbeat_timeout_seconds=max(_HEARTBEAT, int(1.5 * lost)),
        shutdown_timeout_seconds=_SHUTDOWN,
    )
    timer.cancel()
    if found.number == 0:
        print(found, file=sys.stderr, flush=True)
    private.hold_aborts()
    _peers = Peers(private.client(), found.number, found.count, lost, coordinator=found.coordinator)
    _peers.start()
    atexit.register(_peers.leave)  # before jax leaves: it was registered earlier
    return found


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UserError(f"{variable}={text}: give seconds, more than 0")
    return seconds


def alone() -> bool:
    """True if the run is one process."""
    import jax

    return jax.process_count() == 1


def is_first() -> bool:
    """True in process 0, the one that writes what is written once."""
    return process_index() == 0


def process_index() -> int:
    """The number of this process, from 0."""
    import jax

    return jax.process_index()


def process_count() -> int:
    """How many processes the run has."""
    import jax

    return jax.process_count()


def barrier(name: str, timeout: float | None = None) -> None:
    """Waits until every process has come here.

    If one has not come by then, the others say who is missing and end with status `LOST`.

    Args:
      name: what is waited for, for the message.
      timeout: seconds; 1800 by default. `SODA_BARRIER_SECONDS` goes before either.
    """
    if alone():
        return
    seconds = _seconds(BARRIER[0], BARRIER[1] if timeout is None else timeout)
    try:
        # One id for all rounds: of every id the service keeps a record for ever.
        private.client().wait_at_barrier(f"soda/{name}", int(1000 * seconds))
    except Exception as error:
        end(_missed(name, seconds, error))


def _missed(name: str, seconds: float, error: Exception) -> str:
    """One line about a barrier that failed; those that came see each other's marks."""
    import jax

    reason = str(error).partition("\n")[0]
    if "DEADLINE_EXCEEDED" not in reason:
        return f"barrier {name!r} failed: {reason}"
    client, place = private.client(), f"soda/came/{name}"
    client.key_value_set(f"{place}/{process_index()}", "", allow_overwrite=True)
    time.sleep(min(1.0, seconds))
    came = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(f"{place}/")}
    missing = [str(number) for number in range(jax.process_count()) if number not in came]
    return (
        f"barrier {name!r}: process {', '.join(missing)} did not come within {seconds:g} s "
        f"({BARRIER[0]})"
    )


def any_process(flag: bool, name: str = "any process", timeout: float | None = None) -> bool:
    """True everywhere if any process says True; arguments as of `barrier`."""
    if alone():
        return bool(flag)
    client, place = private.client(), f"soda/yes/{name}/{_next_round(name)}/"
    if flag:
        client.key_value_set(f"{place}{process_index()}", "")
    barrier(name, timeout)
    return bool(client.key_value_dir_get(place))


def all_processes(flag: bool, name: str = "all processes", timeout: float | None = None) -> bool:
    """True everywhere if every process says True; arguments as of `barrier`."""
    return not any_process(not flag, name, timeout)


def broadcast_json(value: Any, name: str = "broadcast", timeout: float | None = None) -> Any:
    """The value that process 0 passes (plain JSON), in every process; others' are ignored.

    Arguments are otherwise those of `barrier`.
    """
    if alone():
        return value
    client, number = private.client(), _next_round(name)
    if is_first():
        client.key_value_set(f"soda/said/{name}/{number}", json.dumps(value))
    barrier(name, timeout)
    if not is_first():
        return json.loads(client.key_value_try_get(f"soda/said/{name}/{number}"))
    if number:  # all have come to this round, so all have read the one before
        client.key_value_delete(f"soda/said/{name}/{number - 1}")
    return json.loads(json.dumps(value))


def gather_json(value: Any, name: str = "gather", timeout: float | None = None) -> list[Any]:
    """The values (plain JSON) of all processes in their order, in every process.

    Arguments are otherwise those of `barrier`.
    """
    if alone():
        return [json.loads(json.dumps(value))]
    client, place = private.client(), f"soda/told/{name}/{_next_round(name)}/"
    client.key_value_set(f"{place}{process_index()}", json.dumps(value))
    barrier(name, timeout)
    told = {int(k.rpartition("/")[2]): json.loads(v) for k, v in client.key_value_dir_get(place)}
    return [told[number] for number in sorted(told)]


def _next_round(name: str) -> int:
    _rounds[name] += 1
    return _rounds[name] - 1


@contextmanager
def together() -> Iterator[None]:
    """Within it, a process that fails takes the others along; one that is alone just raises.

    The others would wait in a collective for ever. So the failure is printed here, told to them, and
    all end: with status 2 for a `UserError`, 130 for an interrupt, else 1.
    """
    if alone():
        yield
        return
    try:
        yield
    except BaseException as error:
        _fail(error)


def _fail(error: BaseException) -> None:
    told, status = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", 1
    if isinstance(error, UserError):
        told, status = f"error: {error}", 2
    elif isinstance(error, KeyboardInterrupt):
        told, status = "interrupted", 130
    elif _may_come_from_another(error) and _peers is not None:
        print(f"soda: process {process_index()}: {told[:300]}", file=sys.stderr, flush=True)
        time.sleep(_peers.patience)  # if a process was lost, this one ends meanwhile
    if status == 1:
        traceback.print_exception(error)
    end(f"process {process_index()} stopped: {told}", status)


def _may_come_from_another(error: BaseException) -> bool:
    """True for errors of devices and of their network, as a process meets that has lost another."""
    import jax

    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


def end(message: str, status: int = LOST) -> None:
    """Says why, tells the others, and ends this process at once; see `peers.py`."""
    if _peers is not None:
        _peers.end(message, status)
    print(f"soda: {message}", file=sys.stderr, flush=True)
    os._exit(status)
