"""A step that does not finish: the stacks of all threads are written, later the run is ended.

A hung collective or mount raises nothing, so a run would stand still for days. A hang that lasts
twice the patience ends the run, so that a launcher starts it again from its last checkpoint.
"""

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Self

from soda_jax.parallel import hosts

# The first step compiles; beside that of any other step it may take so many times as long.
FIRST_STEP = 4.0


class Watchdog:
    """Looks at the main thread of a run from another one; `now` says what that begins to do."""

    def __init__(
        self,
        workdir: Path,
        minutes: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[str], None] = hosts.end,
    ):
        """Args:
        workdir: the stacks go to `stacks-PROCESS.txt` in it, and to stderr.
        minutes: patience with one step, hook or save; 0: without end.
        clock: seconds, for tests.
        end: ends the run with a message, for tests.
        """
        self._minutes, self._clock, self._end = minutes, clock, end
        self._number = hosts.process_index()
        self._file = workdir / f"stacks-{self._number}.txt"
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self.now("starting")

    def now(self, doing: str, patience: float = 1.0) -> None:
        """Says what begins, for the message, and how many times the usual minutes it may take."""
        # One tuple, so that the other thread never sees half of it.
        self._state = (doing, self._clock(), 60 * self._minutes * patience)

    def __enter__(self) -> Self:
        if self._minutes:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._minutes:
            self._thread.join()

    def _run(self) -> None:
        told: object = None
        while not self._left.wait(min(10.0, 60 * self._minutes / 10)):
            state = doing, since, patience = self._state
            passed = self._clock() - since
            if passed > patience and told is not state:
                told = state
                self._tell(f"{doing} has not finished for {passed / 60:.3g} minutes")
            if passed > 2 * patience:
                self._end(
                    f"{doing} has not finished for {passed / 60:.3g} minutes, the stacks are in "
                    f"{self._file}; start the run again, it goes on from its last checkpoint"
                )
                return

    def _tell(self, message: str) -> None:
        text = (
            f"{time.strftime('%F %T')} process {self._number}: {message}; all stacks:\n{stacks()}"
        )
        print(text, file=sys.stderr, flush=True)
        # Last, because the disk may be what hangs.
        with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8") as file:
            file.write(text)


def stacks() -> str:
    """The stacks of all Python threads of this process, each under the name of its thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
