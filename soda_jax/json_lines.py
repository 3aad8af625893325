"""Reads and appends to files of one JSON object per line, which may end in a line that a kill cut off."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.files import write_atomic


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file; a last line without its end is removed from the file.

    Raises:
      ValueError: if another line is not a JSON object.
      OSError: if the file cannot be read.
    """
    *lines, rest = path.read_text("utf-8", errors="replace").split("\n")
    rows = [json.loads(line) for line in lines]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
    if rest:
        write_atomic(path, "\n".join([*lines, ""]))
    return rows


def json_line(row: Mapping[str, Any]) -> str:
    """Returns an object as one line of JSON with its end."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one object. It survives the end of the process, but perhaps not of the machine."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line(row))
