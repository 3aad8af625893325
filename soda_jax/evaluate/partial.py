"""Keeps the results of single items in a file, so that a stopped evaluation can continue."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from soda_jax.errors import UserError
from soda_jax.files import write_atomic
from soda_jax.json_lines import append_json_line, read_json_lines
from soda_jax.progress import track


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Entry = TypeVar("Entry", bound=_Named)


class PartialResults:
    """Results by name of the item, stored as one JSON line each.

    The first line has the settings, and the name of the file a hash of them, so evaluations of other models,
    benchmarks or settings have other files. A last line without its end, from a process that was killed, is removed.

    Attributes:
      task: name of the task.
      path: the file; None if the results are kept in memory only.
    """

    def __init__(self, folder: Path | None, task: str, settings: Mapping[str, Any]):
        """Reads the results so far; with `folder` None they are kept in memory only.

        Raises:
          UserError: if the file is damaged.
        """
        self.task, self.path = task, None
        self._rows: dict[str, Any] = {}
        if folder is None:
            return
        first = json.dumps({"settings": settings}, sort_keys=True)
        name = f"{task}-{hashlib.sha256(first.encode()).hexdigest()[:12]}.jsonl"
        self.path = folder / name
        if self.path.exists():
            self._read(self.path)
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, first + "\n")

    def _read(self, path: Path) -> None:
        try:
            self._rows = {row.pop("name"): row for row in read_json_lines(path)[1:]}
        except (ValueError, KeyError):
            raise UserError(f"{path} is damaged: remove it to score its items again") from None
        print(f"{path}: {len(self._rows)} items are scored already", file=sys.stderr)

    def remove(self) -> None:
        """Removes the file, and its folder if that is empty."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._rows[name]

    def pending(self, entries: Sequence[Entry], size: int, what: str) -> Iterator[list[Entry]]:
        """Yields the entries without a result in blocks of `size`, and shows the progress."""
        rest = [entry for entry in entries if entry.name not in self._rows]
        blocks = [rest[at : at + size] for at in range(0, len(rest), size)]
        label = self.task if len(rest) == len(entries) else f"{self.task}, resumed"
        yield from track(iter(blocks), f"{label}, blocks of {size} {what}", len(blocks))

    def fill(
        self,
        entries: Sequence[Entry],
        score: Callable[[list[Entry]], Iterable[tuple[Entry, Mapping[str, Any]]]],
        size: int = 0,
        what: str = "items",
        keep: Callable[[Mapping[str, Any]], bool] = lambda row: True,
    ) -> list[dict[str, Any]]:
        """Scores the entries without a result, and returns the results of all entries, in order.

        Args:
          entries: the items.
          score: yields (entry, result) for a block of entries, in any order; each result is stored at once.
          size: entries of a block; 0 = all, and `score` shows the progress.
          what: what the entries are, for the progress.
          keep: whether to write a result, see `add`.
        """
        rest = [entry for entry in entries if entry.name not in self._rows]
        blocks: Iterable[list[Entry]] = [rest] if rest else []
        for block in self.pending(entries, size, what) if size else blocks:
            for entry, row in score(block):
                self.add(entry.name, row, keep(row))
        return [self[entry.name] for entry in entries]

    def add(self, name: str, row: Mapping[str, Any], keep: bool = True) -> None:
        """Adds the result of an item, a JSON-able dict without the key `name`.

        With `keep` False it is not written, so a continued evaluation tries the item again.
        """
        self._rows[name] = dict(row)
        if self.path is not None and keep:
            append_json_line(self.path, {"name": name, **row})
