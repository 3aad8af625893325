"""Writes the stacks of all threads when a step does not finish, and ends the run if it still hangs.

A collective or a file system that hangs raises no exception, so the run would wait for days. After
twice the limit the run exits, so that a launcher can restart it from its last checkpoint.
"""

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Self

import jax

from soda_jax.parallel import hosts

# The first step includes compilation, so its limit is this many times the usual limit.
FIRST_STEP = 4.0


class Watchdog:
    """Monitors the main thread of a run from another thread; `now` sets the current activity."""

    def __init__(
        self,
        workdir: Path,
        minutes: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[str], None] = hosts.end_all,
    ):
        """Creates the thread; entering the context starts it.

        Args:
          workdir: folder for `stacks-PROCESS.txt`; the stacks are also printed to stderr.
          minutes: limit for one step, hook or save; 0 disables the watchdog.
          clock: function that returns seconds; replaced in tests.
          end: function that ends the run with a message; replaced in tests.
        """
        self._minutes, self._clock, self._end = minutes, clock, end
        self._process = jax.process_index()
        self._file = workdir / f"stacks-{self._process}.txt"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._monitor, name="watchdog", daemon=True)
        self.now("starting")

    def now(self, activity: str, factor: float = 1.0) -> None:
        """Records that `activity` starts, with `factor` times the usual limit."""
        # One tuple, so that the other thread never reads a mix of two activities.
        self._state = (activity, self._clock(), 60 * self._minutes * factor)

    def __enter__(self) -> Self:
        if self._minutes:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._minutes:
            self._thread.join()

    def _monitor(self) -> None:
        reported: object = None
        while not self._stopped.wait(min(10.0, 60 * self._minutes / 10)):
            state = activity, started, limit = self._state
            elapsed = self._clock() - started
            message = f"{activity} has not finished after {elapsed / 60:.3g} minutes"
            if elapsed > limit and reported is not state:
                reported = state
                self._write_stacks(message)
            if elapsed > 2 * limit:
                self._end(
                    f"{message}; the stacks are in {self._file}. Restart the run: it resumes from "
                    "its last checkpoint"
                )
                return

    def _write_stacks(self, message: str) -> None:
        text = (
            f"{time.strftime('%F %T')} process {self._process}: {message}; all stacks:\n{stacks()}"
        )
        print(text, file=sys.stderr, flush=True)
        # The file is written last, because the disk may be what hangs.
        with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8") as file:
            file.write(text)


def stacks() -> str:
    """Returns the stacks of all Python threads of this process, each after its thread's name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
