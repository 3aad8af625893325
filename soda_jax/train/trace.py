"""Writes a profiler trace of the steps given by `--profile_steps`."""

import sys
from pathlib import Path
from typing import Any

import jax


class Trace:
    """Profiles some steps of a run; leaving the context stops a running trace."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path, done: int, total: int):
        """Sets the steps to trace; prints a message if this run does not execute the first of them.

        Args:
          steps: first and last step of the trace, None for no trace.
          folder: folder for the trace.
          done: optimizer steps done before this start.
          total: number of steps of the run.
        """
        self._steps, self._folder, self._running = steps, folder, False
        if steps and not done < steps[0] <= total:
            self._steps = None
            state = f"continues at step {done + 1}" if done < total else "is done"
            print(
                f"no profile of steps {steps[0]} to {steps[1]}: the run {state} and has {total} "
                "steps; pass --profile_steps within the remaining steps",
                file=sys.stderr,
            )
        elif steps:
            self._steps = (steps[0], min(steps[1], total))

    def begins(self, step: int) -> bool:
        """Returns whether `step` is the first step of the trace."""
        return bool(self._steps and step == self._steps[0])

    def start(self, state: Any) -> None:
        """Waits for `state`, the result of the previous step, and starts the profiler."""
        jax.block_until_ready(state)
        jax.profiler.start_trace(str(self._folder))
        self._running = True

    def ends(self, step: int) -> bool:
        """Returns whether `step` is the last step of the trace."""
        return bool(self._steps and self._running and step == self._steps[1])

    def stop(self, state: Any) -> None:
        """Waits for `state`, the result of the last traced step, and stops the profiler."""
        jax.block_until_ready(state)
        self._stop()

    def _stop(self) -> None:
        # Set first, so that `__exit__` does not call stop_trace again if stop_trace raises.
        self._running = False
        jax.profiler.stop_trace()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._running and self._steps:
            print(
                f"profile incomplete: the run stopped before the end of step {self._steps[1]}",
                file=sys.stderr,
            )
            self._stop()
