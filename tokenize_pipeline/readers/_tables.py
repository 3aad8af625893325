"""Tables with a header: CSV, where quotes protect what they enclose, and TSV, where they are text.

A row of TSV is a line, and its fields are separated by tabs, as in Common Voice (csv.QUOTE_NONE). A tab or
line end in a field gives rows with another number of fields than the header, which are malformed; rows
are never padded or truncated.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from soda_jax.errors import UserError
from tokenize_pipeline.readers._lines import RowError
from tokenize_pipeline.readers._rows import no_row, reject_split_rows

_LARGEST_FIELD = 2**30

Fields = tuple[int, list[str] | RowError]  # (first line number of the row, its fields)


class Table(NamedTuple):
    """A table: the names of its columns, and its rows with one field per column, or errors.

    The `row` of an error has the readable fields, or is None.
    """

    header: list[str]
    rows: Iterator[Fields]


def csv_table(lines: Iterator[tuple[int, str]], name: str, required: Sequence[str]) -> Table:
    """Reads CSV; a malformed row of several lines gives one error per line.

    Args:
      lines: lines from `_lines.lines`.
      name: name of the file, for messages.
      required: columns that the header must have; the last one is the text.

    Raises:
      UserError: for a wrong header, or (from the rows) a quote that is open at the end of the file: the
        number of rows that it contains is unknown, so they cannot be counted.
    """
    rows = _csv_rows(lines, name)
    _, header = next(rows, (0, []))
    assert not isinstance(header, RowError)
    return _table(header, rows, name, required)


def tsv_table(lines: Iterator[tuple[int, str]], name: str, required: Sequence[str]) -> Table:
    """Reads TSV; see `csv_table`."""
    header = next((_tsv_fields(line) for _, line in lines if line.strip("\r\n")), [])
    return _table(header, _tsv_rows(lines, len(header)), name, required)


def _table(header: list[str], rows: Iterator[Fields], name: str, required: Sequence[str]) -> Table:
    missing = [column for column in required if column not in header]
    if missing:
        raise UserError(f"{name} has no column {missing[0]!r} in its header {str(header)[:300]}")
    repeated = [column for column, count in Counter(header).items() if column and count > 1]
    if repeated:
        raise UserError(
            f"{name} has more than one column {repeated[0]!r} in its header: rename all but one"
        )
    return Table(header, reject_split_rows(rows) if header[-1] == required[-1] else rows)


def _wrong_count(fields: list[str], count: int) -> RowError:
    more = len(fields) > count
    amount = "more" if more else "fewer"
    message = f"{len(fields)} fields, {amount} fields than the header has columns ({count})"
    return no_row("".join(fields), message, attempt=more, row=fields)


def _tsv_fields(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _tsv_rows(lines: Iterator[tuple[int, str]], count: int) -> Iterator[Fields]:
    for number, line in lines:
        fields = _tsv_fields(line)
        if len(fields) == count:
            yield number, fields
        elif fields != [""]:  # not an empty line
            yield number, _wrong_count(fields, count)


def _csv_rows(lines: Iterator[tuple[int, str]], name: str) -> Iterator[Fields]:
    """Yields the header, then the rows."""
    csv.field_size_limit(_LARGEST_FIELD)
    ended = False

    def content() -> Iterator[str]:
        nonlocal ended
        for _, line in lines:
            yield line
        ended = True

    reader = csv.reader(content(), strict=True)
    count = 0  # columns of the header, once it is read
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if ended:
                raise UserError(
                    f"{name}: the row that begins in line {first} has a quote that is never closed: "
                    'close it with ", or write "" for a quote inside a field'
                ) from None
            if not count:
                raise UserError(
                    f"{name} has no readable header in line {first}: {_cause(error)}"
                ) from None
            # A stray quote extends to the next quote: each line between them may be a row.
            for number in range(first, reader.line_num + 1):
                yield number, RowError(f"not a CSV row: {_cause(error)}")
            continue
        if not fields:  # an empty line
            continue
        count = count or len(fields)
        yield first, fields if len(fields) == count else _wrong_count(fields, count)


def _cause(error: csv.Error) -> str:
    # The message of the library is advice on opening a file in Python.
    is_line_end = str(error).startswith("new-line character")
    return "a CR without LF is outside quotes" if is_line_end else str(error)
