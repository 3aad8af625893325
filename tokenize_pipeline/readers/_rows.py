"""Parses rows of text files (CSV, TSV, JSON objects), and detects repeated and split rows.

In CSV, a quoted field may contain separators and line ends. In TSV, quotes are text: a row is a
line, and its fields are separated by tabs, as in Common Voice (csv.QUOTE_NONE). If a TSV field
contains a tab or line end, the number of fields in a row differs from the header. Such rows are
malformed; they are never padded or truncated.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from soda_jax.errors import UserError
from tokenize_pipeline.readers import Rejected
from tokenize_pipeline.text_faults import NUL_MARK, text_fault

_LARGEST_FIELD = 2**30

Row = TypeVar("Row")
Line = tuple[int, str]  # (number of the line, its text), from `_lines.lines`


class RowError(ValueError):
    """Raised for a row that cannot be used.

    Attributes:
      reason: reason for the quarantine, a key of `tokenize_pipeline.quarantine.REASONS`.
      row: the readable part of the row, if any.
    """

    def __init__(self, message: str, reason: str = "malformed_row", row: Any = None):
        """Creates the error; `message` is one line, and the other arguments are the attributes."""
        super().__init__(message)
        self.reason = reason
        self.row = row

    def rejected(self, where: str, document: str | None = None) -> Rejected:
        """Returns the rejected row at position `where`; `document` is its document id, if known."""
        return Rejected(self.reason, str(self), where, document)


class NoRowError(RowError):
    """Raised for a line that is not a row; it may continue the text of the previous line."""


def no_row(line: str, message: str, *, attempt: bool = False, row: Any = None) -> RowError:
    """Returns the error for a line that is not a row.

    Args:
      line: the line. If it contains a NUL byte, the error is that of `text_fault`.
      message: error message if the line contains no NUL.
      attempt: whether the line must be a malformed row and cannot be the rest of a text.
      row: the readable part of the row.
    """
    if NUL_MARK in line and (fault := text_fault(line)) is not None:
        return RowError(f"the row {fault.message}", fault.reason, row)
    return (RowError if attempt else NoRowError)(message, row=row)


def parse_rows(
    lines: Iterable[Line], parse: Callable[[str], Row], *, text_is_last: bool = False
) -> Iterator[tuple[int, Row | RowError]]:
    """Yields (line number, row) of the lines that are not empty.

    Args:
      lines: lines from `_lines.lines`.
      parse: parses a line. If it raises a `RowError`, the error is yielded as the row.
      text_is_last: whether the last field is text; see `reject_split_rows`.
    """

    def parsed() -> Iterator[tuple[int, Row | RowError]]:
        for number, line in lines:
            if line.strip():
                try:
                    yield number, parse(line)
                except RowError as error:
                    yield number, error

    return reject_split_rows(parsed()) if text_is_last else parsed()


def reject_split_rows(
    rows: Iterable[tuple[int, Row | RowError]],
) -> Iterator[tuple[int, Row | RowError]]:
    """Yields `rows`, whose last field is text, with an error instead of each row that may be split.

    If a text contains a line end, its first part looks like a complete row, and the next line is
    not a row. The audio contains the whole text, so the row must not be used.
    """
    held: tuple[int, Row | RowError] | None = None
    for item in rows:
        if held is not None:
            if isinstance(item[1], NoRowError) and not isinstance(held[1], RowError):
                message = f"line {item[0]} is not a row and may be the rest of this text"
                held = held[0], RowError(f"{message}: remove the line end from it", row=held[1])
            yield held
        held = item
    if held is not None:
        yield held


class Repeats:
    """Detects repeated rows in a document or file; the first row of an utterance is used."""

    def __init__(self) -> None:
        """Creates a detector without rows."""
        self._first: dict[Hashable, tuple[Hashable, str]] = {}

    def check(self, identity: Hashable, content: Hashable, where: str, name: str) -> None:
        """Adds a row, unless it repeats an earlier one.

        Args:
          identity: key of the utterance, unique in the document or file.
          content: content of the row.
          where: position of the row.
          name: name of the utterance in the error message.

        Raises:
          RowError: `duplicate` or `conflicting_duplicate` if an earlier row has this identity.
        """
        if (first := self._first.get(identity)) is not None:
            raise repeat_error(name, first[1], same=first[0] == content)
        self._first[identity] = content, where


def repeat_error(name: str, first: str, *, same: bool) -> RowError:
    """Returns the error for a row that describes the same utterance as the row at `first`."""
    if same:
        return RowError(f"{name} repeats {first}", "duplicate")
    message = f"{name} has other content in {first}, which is used: remove one of the two"
    return RowError(message, "conflicting_duplicate")


class RepeatedFields(dict[str, Any]):
    """A JSON object with a repeated field; as a dict, it has the last value of each field.

    Attributes:
      pairs: all (field, value) pairs in order.
    """

    pairs: list[tuple[str, Any]]

    def first_repeated(self) -> str:
        """Returns the first field that occurs more than once."""
        return _first_repeated(name for name, _ in self.pairs)


def _first_repeated(names: Iterable[str]) -> str:
    return next((name for name, count in Counter(names).items() if name and count > 1), "")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        found = RepeatedFields(pairs)
        found.pairs = pairs
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def json_value(text: str) -> Any:
    """Parses JSON; objects with a repeated field become `RepeatedFields`.

    Raises:
      ValueError, RecursionError: if the text is not JSON.
    """
    return _DECODER.decode(text)


def json_object(line: str) -> dict[str, Any]:
    """Parses a line as a JSON object; raises RowError if it is not one or repeats a field."""
    try:
        value = json_value(line)
    except (ValueError, RecursionError) as error:
        raise no_row(line, f"not a JSON object: {error}", attempt=True) from None
    if isinstance(value, RepeatedFields):
        raise RowError(f"field {value.first_repeated()!r} occurs twice")
    if not isinstance(value, dict):
        raise RowError(f"not a JSON object but {type(value).__name__}")
    return value


def optional_string(row: dict[str, Any], name: str) -> str | None:
    """Returns field `name` as a string; None if it is absent, null or empty. Integers are converted.

    Raises:
      RowError: if the field has another type, is not valid UTF-8 or contains a NUL byte.
    """
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"{name!r} is {value!r}, not a string")
    text = str(value)
    if not text.isascii() and (fault := text_fault(text)) is not None:
        raise RowError(f"{name!r} {fault.message}", fault.reason)
    return text


def required_text(row: dict[str, Any]) -> str:
    """Returns the field "text", which may be empty; raises RowError if it is not a string."""
    text = row.get("text")
    if isinstance(text, str):
        return text
    raise RowError("'text' is missing" if text is None else f"'text' is {text!r}, not a string")


def csv_rows(
    lines: Iterator[Line], name: str, required: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Reads CSV with a header; yields one error per line of a row that cannot be parsed.

    Args:
      lines: lines from `_lines.lines`.
      name: name of the file in error messages.
      required: columns that the header must have; the last one is the text.

    Returns:
      An iterator of (number of the first line, fields by column) of each row. The `row` of an error
      contains the readable fields, or is None.

    Raises:
      UserError: if the header is wrong, or (from the iterator) if a quote is still open at the end
        of the file, because the quoted field may contain any number of rows.
    """
    return _named_fields(_csv_fields(lines, name), name, required)


def tsv_rows(
    lines: Iterator[Line], name: str, required: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Reads TSV with a header; see `csv_rows`."""
    fields = ((n, ln.rstrip("\r\n").split("\t")) for n, ln in lines if ln.strip("\r\n"))
    return _named_fields(fields, name, required)


def _named_fields(
    rows: Iterator[tuple[int, list[str] | RowError]], name: str, required: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Returns the rows as dicts by column; the first row is the header."""
    _, header = next(rows, (0, []))
    assert not isinstance(header, RowError)
    for column in required:
        if column not in header:
            raise UserError(f"{name} has no column {column!r} in its header {str(header)[:300]}")
    if repeated := _first_repeated(header):
        fix = "rename all but one"
        raise UserError(f"{name} has more than one column {repeated!r} in its header: {fix}")

    def row(fields: list[str] | RowError) -> dict[str, Any] | RowError:
        if isinstance(fields, RowError):
            return fields
        named = dict(zip(header, fields, strict=False))
        if len(fields) == len(header):
            return named
        more = len(fields) > len(header)
        amount = f"{'more' if more else 'fewer'} fields than the header has columns ({len(header)})"
        message = f"{len(fields)} fields, {amount}"
        return no_row("".join(fields), message, attempt=more, row=named)

    named_rows = ((number, row(fields)) for number, fields in rows)
    return reject_split_rows(named_rows) if header[-1] == required[-1] else named_rows


def _csv_fields(lines: Iterator[Line], name: str) -> Iterator[tuple[int, list[str] | RowError]]:
    csv.field_size_limit(_LARGEST_FIELD)
    ended = False

    def content() -> Iterator[str]:
        nonlocal ended
        for _, line in lines:
            yield line
        ended = True

    reader = csv.reader(content(), strict=True)
    has_header = False
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if ended:
                raise UserError(
                    f"{name}: the row that begins in line {first} has a quote that is never closed: "
                    'close it with ", or write "" for a quote inside a field'
                ) from None
            # For a CR outside quotes, the message of `csv` is advice on opening files in Python.
            is_line_end = str(error).startswith("new-line character")
            cause = "a CR without LF is outside quotes" if is_line_end else str(error)
            if not has_header:
                raise UserError(f"{name} has no readable header in line {first}: {cause}") from None
            # After a stray quote, everything up to the next quote is one field, so each line in
            # between may be a row.
            for number in range(first, reader.line_num + 1):
                yield number, RowError(f"not a CSV row: {cause}")
            continue
        if fields:  # not an empty line
            has_header = True
            yield first, fields
