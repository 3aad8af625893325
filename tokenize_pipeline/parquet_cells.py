"""Reads sounds from the cells of a Parquet file: bytes, or the path of another file.

The layout is that of Hugging Face `datasets`: a column of bytes, or of structs of `bytes` and
`path`. If a cell has no bytes (`Dataset.to_parquet` of datasets 5.1.0 writes only paths), the file
at its path is read, provided that it is below the folder of the Parquet file. The cells that
were read last (one column of one row group) are cached.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.tar_stream import LARGEST_MEMBER

_CELL = re.compile(r"(.+)/(\d{1,9})/(\d{1,12})", re.ASCII | re.DOTALL)

MemberContent = tuple[str, bytes | BadInputError]  # (member, content or error)


class ParquetCells:
    """The cells of one Parquet file; see `archives.ArchiveReader`."""

    def __init__(self, path: str):
        """Creates a reader; the file is opened when cells are read."""
        self._path = path
        self._file: Any = None
        self._held: tuple[tuple[int, str] | None, Any] = (None, None)

    def read(self, members: Sequence[str]) -> Iterator[MemberContent]:
        """Yields (member, content or error), by row group; a member is COLUMN/ROWGROUP/ROW."""
        cells: dict[tuple[int, str], list[tuple[int, str]]] = {}
        for member in members:
            if match := _CELL.fullmatch(member):
                column, group, row = match.groups()
                cells.setdefault((int(group), column), []).append((int(row), member))
            else:
                message = f"{self._path}: member {member} is not COLUMN/ROWGROUP/ROW"
                yield member, BadInputError("missing", message)
        for (group, column), rows in sorted(cells.items()):
            try:
                values = self._values(group, column)
            except BadInputError as error:
                for _, member in rows:
                    yield member, BadInputError(error.reason, f"{error}; {member} cannot be read")
                continue
            for row, member in sorted(rows):
                yield member, self._cell(values, row, member)

    def _values(self, group: int, column: str) -> Any:
        """Returns the cells of one column in one row group, as a chunked Arrow array."""
        import pyarrow
        import pyarrow.parquet

        if self._held[0] == (group, column):
            return self._held[1]
        self._held = (None, None)  # frees the memory before the next row group is read
        try:
            if self._file is None:
                self._file = pyarrow.parquet.ParquetFile(self._path)
            if not 0 <= group < self._file.num_row_groups:
                raise BadInputError("missing", f"{self._path}: no row group {group}")
            if column not in self._file.schema_arrow.names:
                raise BadInputError("missing", f"{self._path}: no column {column}")
            kind = self._file.schema_arrow.field(column).type
            fields = kind.names if pyarrow.types.is_struct(kind) else ()
            names = [f"{column}.{name}" for name in ("bytes", "path") if name in fields]
            values = self._file.read_row_group(group, columns=names or [column]).column(column)
        except FileNotFoundError:
            raise BadInputError("missing", f"{self._path}: no such archive") from None
        except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
            cause = str(error).partition("\n")[0]
            reason = "truncated" if _is_truncated(self._path) else "undecodable"
            raise BadInputError(reason, f"{self._path}: not readable ({cause})") from None
        self._held = ((group, column), values)
        return values

    def _cell(self, values: Any, row: int, member: str) -> bytes | BadInputError:
        if row >= len(values):
            return BadInputError("missing", f"{self._path}: the row group ends before {member}")
        cell = f"{self._path}: the cell {member}"
        try:
            value = values[row].as_py()
        except ValueError as error:  # a path that is not UTF-8
            return BadInputError("undecodable", f"{cell} is not readable ({error})")
        content, path = value, None
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
        if isinstance(content, bytes):
            return content
        name = path if content is None else content
        if name is None:
            return BadInputError("missing", f"{cell} is empty")
        if not isinstance(name, str):
            return BadInputError("undecodable", f"{cell} is {type(name).__name__}, not bytes")
        if (sound := self._read_file(name)) is not None:
            return sound
        if content is not None:
            cause = "is text, but not the path of a file below the folder of the Parquet file"
            return BadInputError("undecodable", f"{cell} {cause}: {name[:200]!r}")
        return BadInputError(
            "missing",
            f"{cell} has no bytes, and its path {name[:200]!r} is not a readable file below the "
            "folder of the Parquet file: put it there, or use its path as the audio of the row",
        )

    def _read_file(self, path: str) -> bytes | None:
        """Returns the content of the file at `path`, relative to the folder of the Parquet file.

        Returns None if the file is outside that folder, cannot be read or is too large.
        """
        name = PurePosixPath(path)
        if name.is_absolute() or ".." in name.parts:
            return None
        try:
            with open(os.path.join(os.path.dirname(self._path), path), "rb") as file:
                content = file.read(LARGEST_MEMBER + 1)
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return None
        return content if len(content) <= LARGEST_MEMBER else None


def _is_truncated(path: str) -> bool:
    """Returns whether a file has the magic bytes of Parquet at its start but not at its end."""
    try:
        with open(path, "rb") as file:
            begins = file.read(4) == b"PAR1"
            file.seek(max(0, os.path.getsize(path) - 4))
            return begins and file.read(4) != b"PAR1"
    except OSError:
        return False
