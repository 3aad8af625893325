"""The worker side of `_sides`: builds a training step, then runs it on request.

Uses the standard library only, because the interpreter of another trainer need not have this
package. A worker is a script `WORKER.py ORDER` with a JSON object ORDER; it writes one JSON object
per line to standard output:

    {"ready": …}      once, after the first steps: `Step.facts`, the `setting` in use, and
                      `first_step`, the seconds of a step
    {"missing": …}    instead, if the side cannot run here: the reason
    {"seconds": …}    for every line {"steps": N} on its standard input, with `core_seconds` (of all
                      threads) and `peak_bytes`

The output of libraries is redirected to standard error.
"""

import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any


class MissingError(Exception):
    """Raised if the side cannot run in this interpreter or on this device; gives the reason."""


@dataclasses.dataclass
class Step:
    """A training step that is ready to run.

    Attributes:
      run: trains the given number of steps and returns when the device has finished them.
      facts: `parameters` and `device`, and further facts of the side.
      peak_bytes: returns the peak memory so far.
      after: called after the timed steps; returns further facts for the answer.
      warm: whether two untimed steps compile and let the allocator grow. If False, `first_step` includes
        the compilation.
    """

    run: Callable[[int], None]
    facts: dict[str, Any]
    peak_bytes: Callable[[], int]
    after: Callable[[], dict[str, Any]] = dict
    warm: bool = True


def serve(
    build: Callable[[dict[str, Any], dict[str, Any]], Step],
    settings: Callable[[dict[str, Any]], Iterable[dict[str, Any]]],
) -> None:
    """Runs a worker.

    Args:
      build: (order, setting) → step.
      settings: order → ways to run it, best first; the first one that fits in memory is used. An
        order with a `setting` uses only that one.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    order = json.loads(sys.argv[1])
    try:
        chosen = [order["setting"]] if "setting" in order else settings(order)
        step, ready = _first_that_fits(build, order, chosen)
    except (MissingError, ImportError) as error:
        print(json.dumps({"missing": str(error)}), file=answers)
        return
    print(json.dumps({"ready": ready}), file=answers)
    for line in sys.stdin:
        steps = json.loads(line)["steps"]
        began, cores = time.perf_counter(), time.process_time()
        step.run(steps)
        answer = {
            "seconds": time.perf_counter() - began,
            "core_seconds": time.process_time() - cores,
            "peak_bytes": step.peak_bytes(),
        }
        print(json.dumps({**answer, **step.after()}), file=answers)


def _first_that_fits(
    build: Callable[..., Step], order: dict[str, Any], settings: Iterable[dict[str, Any]]
) -> tuple[Step, dict[str, Any]]:
    for setting in settings:
        try:
            step = build(order, setting)
            if step.warm:
                step.run(1)  # compiles
                step.run(1)  # lets the allocator grow
            began = time.perf_counter()
            step.run(1)
            seconds = time.perf_counter() - began
            return step, {**step.facts, "setting": setting, "first_step": seconds}
        except Exception as error:
            text = f"{type(error).__name__} {error}"
            if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
                raise
        step = None
        gc.collect()  # frees the memory of the failed attempt
    raise MissingError("out of memory in every setting")


def resident_bytes() -> int:
    """Returns the peak resident memory of this process so far, compilation included."""
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def jax_peak_bytes(device: Any) -> int:
    """Returns the peak memory of a jax device so far; on a CPU that of the process."""
    stats = device.memory_stats()
    return int(stats["peak_bytes_in_use"]) if stats else resident_bytes()
