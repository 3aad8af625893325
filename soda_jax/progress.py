"""Shows progress as a bar on a terminal or as lines in a log, with the estimated time left."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
_LOG_EVERY_SECONDS = 10.0


class Progress:
    """Shows a bar on a terminal; otherwise prints a line every ten seconds."""

    def __init__(self, label: str, total: float | None, *, start: float = 0):
        """Starts the clock and, on a terminal, the bar.

        Args:
          label: name of the work.
          total: number of units of work; None if unknown.
          start: number of units that were done earlier, for example before a resume.
        """
        self.label, self.total, self.done, self._start = label, total, start, start
        self._began = self._logged = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                # If stdout is a file or a pipe, rich must not redirect it to the terminal.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._task = self._bar.add_task(label, total=total, completed=int(start), note="")
            self._bar.start()

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Counts `amount` more units as done, and shows the short text `note` next to the bar."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, note=note)
            return
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_SECONDS:
            self._logged = now
            self._log(now, note)

    def _log(self, now: float, note: str) -> None:
        line = f"{self.label}: {self.done:g}"
        if self.total:
            rate = (self.done - self._start) / max(now - self._began, 1e-9)
            left = (self.total - self.done) / rate if rate > 0 else float("inf")
            line += f"/{self.total:g}, about {left:.0f} s left" if rate > 0 else f"/{self.total:g}"
        print(line + (f", {note}" if note else ""), file=sys.stderr, flush=True)

    def restart(self, done: float, seconds: float) -> None:
        """Sets the number of units that are done and the seconds that they took, for the rate.

        With 0 seconds, which means unknown, the rate is that of the units from now on.
        """
        self._start, self.done = 0 if seconds else done, done
        self._began = time.monotonic() - seconds
        if self._bar is not None:
            # Not `update`, which would count the units as done in this moment.
            self._bar.reset(self._task, completed=int(done))

    def close(self) -> None:
        """Stops the bar, or prints a last line with the elapsed time."""
        if self._bar is not None:
            self._bar.stop()
            return
        seconds = time.monotonic() - self._began
        print(f"{self.label}: {self.done:g} done in {seconds:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: float | None, *, start: float = 0) -> Iterator[Progress]:
    """Yields a `Progress` and closes it at the end, also after an exception."""
    bar = Progress(label, total, start=start)
    try:
        yield bar
    finally:
        bar.close()


def track(items: Iterable[Item], label: str, total: float | None = None) -> Iterator[Item]:
    """Yields `items` and shows the progress; `total` defaults to `len(items)`, if possible."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress(label, total) as bar:
        for item in items:
            yield item
            bar.advance()
