"""Detects rows that describe an utterance twice, and rows split by a line end in their text."""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeVar

from tokenize_pipeline.readers._lines import RowError
from tokenize_pipeline.text_faults import NUL_MARK, text_fault

Row = TypeVar("Row")


class Repeats:
    """Finds repeated rows of a document or file; the first row of an utterance is used."""

    def __init__(self) -> None:
        """Starts without rows."""
        self._first: dict[Hashable, tuple[Hashable, str]] = {}

    def check(self, identity: Hashable, content: Hashable, where: str, name: str) -> None:
        """Adds a row.

        Args:
          identity: key of the utterance, unique in the document or file.
          content: content of the row.
          where: position of the row.
          name: name of the utterance, for the message.

        Raises:
          RowError: `duplicate` or `conflicting_duplicate` if an earlier row has this identity.
        """
        if (first := self._first.get(identity)) is not None:
            raise repeat_error(name, first[1], same=first[0] == content)
        self._first[identity] = content, where


def repeat_error(name: str, first: str, *, same: bool) -> RowError:
    """Returns the error of a row that describes the same utterance as the row at `first`."""
    if same:
        return RowError(f"{name} repeats {first}", "duplicate")
    message = f"{name} has other content in {first}, which is used: remove one of the two"
    return RowError(message, "conflicting_duplicate")


class NoRowError(RowError):
    """A line does not have the form of a row; it may continue the text of the previous line."""


def no_row(line: str, message: str, *, attempt: bool = False, row: Any = None) -> RowError:
    """Returns the error of a line that is not a row.

    Args:
      line: the line; if it contains NUL, that is the reason.
      message: message otherwise.
      attempt: whether the line is a malformed row for certain, not the rest of a text.
      row: the readable part of the row.
    """
    if NUL_MARK in line and (fault := text_fault(line)) is not None:
        return RowError(f"the row {fault.message}", fault.reason, row)
    return (RowError if attempt else NoRowError)(message, row=row)


def reject_split_rows(
    rows: Iterable[tuple[int, Row | RowError]],
) -> Iterator[tuple[int, Row | RowError]]:
    """Yields rows whose last field is text; a row followed by a line that is not a row becomes an error.

    A line end in a text gives a row that looks complete and a line that is not a row. The audio contains
    the whole text, so the row must not be used.
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
