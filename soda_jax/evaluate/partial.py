"""Keeps the results of single items in a file, so that a stopped evaluation can continue."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.files import write_atomic


class PartialResults:
    """Results by name of the item, stored as one JSON line each.

    The first line has the settings. If they differ from those of this run, the file is replaced, because
    its results are those of another model or benchmark. A last line without its end, from a process that was
    killed, is removed.

    Attributes:
      task: name of the task.
    """

    def __init__(self, path: Path | None, task: str, settings: Mapping[str, Any]):
        """Reads the results so far; with `path` None they are kept in memory only."""
        self.task, self._path = task, path
        self._rows: dict[str, Any] = {}
        if path is None:
            return
        first = json.dumps({"settings": settings}, sort_keys=True)
        if path.exists():
            lines = path.read_text("utf-8").split("\n")
            if lines[0] == first:
                self._rows = {row.pop("name"): row for row in map(json.loads, lines[1:-1])}
                if lines[-1]:
                    write_atomic(path, "\n".join([*lines[:-1], ""]))
                print(f"{path}: {len(self._rows)} items are scored already", file=sys.stderr)
                return
            print(f"{path} is of another evaluation and is replaced", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, first + "\n")

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._rows[name]

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds the result of an item, a JSON-able dict without the key `name`."""
        self._rows[name] = dict(row)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, **row}) + "\n")
