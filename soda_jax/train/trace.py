"""A profiler trace of the steps that `--profile_steps` asks for, and of nothing else."""

import sys
from pathlib import Path
from typing import Any

import jax


class Trace:
    """The profiler over some steps of a run; leaving it ends a trace that still runs."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path, done: int, total: int):
        """Args: steps: first and last. folder: for the trace. done: steps so far. total: of the run."""
        self._steps, self._folder, self._running = steps, folder, False
        if steps and not done < steps[0] <= total:
            self._steps = None
            where = f"goes on at step {done + 1}" if done < total else "is done"
            print(
                f"no profile of steps {steps[0]} to {steps[1]}: the run {where} and has {total} "
                "steps; give --profile_steps that lie ahead",
                file=sys.stderr,
            )
        elif steps:
            self._steps = (steps[0], min(steps[1], total))

    def begins(self, step: int) -> bool:
        """Whether `step` is the first one of the trace."""
        return bool(self._steps and step == self._steps[0])

    def start(self, state: Any) -> None:
        """Starts the profiler once `state`, of the step before, is there."""
        jax.block_until_ready(state)
        jax.profiler.start_trace(str(self._folder))
        self._running = True

    def ends(self, step: int) -> bool:
        """Whether `step` is the last one of the trace."""
        return bool(self._steps and self._running and step == self._steps[1])

    def stop(self, state: Any) -> None:
        """Stops the profiler once `state`, of the last step, is there."""
        jax.block_until_ready(state)
        self._stop()

    def _stop(self) -> None:
        # Before the call: a trace that cannot be ended is not to be ended again on the way out.
        self._running = False
        jax.profiler.stop_trace()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._running and self._steps:
            print(f"the profile ends before step {self._steps[1]}: the run stops", file=sys.stderr)
            self._stop()
