"""Rows that describe one utterance twice, and rows that were cut by a line end in their text."""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeVar

from tokenize_pipeline.readers._lines import RowError
from tokenize_pipeline.text_faults import NUL_MARK, text_fault

Row = TypeVar("Row")


class Repeats:
    """The rows of a document or file by the utterance that they describe: the first one is used."""

    def __init__(self) -> None:
        """Starts without rows."""
        self._first: dict[Hashable, tuple[Hashable, str]] = {}

    def check(self, identity: Hashable, content: Hashable, where: str, name: str) -> None:
        """Adds a row.

        Args:
          identity: of the utterance, unique in the document or file.
          content: what the row says of it.
          where: position of the row.
          name: of the utterance, for the message.

        Raises:
          RowError: `duplicate` or `conflicting_duplicate` if an earlier row has this identity.
        """
        if (first := self._first.get(identity)) is not None:
            raise repeat_error(name, first[1], same=first[0] == content)
        self._first[identity] = content, where


def repeat_error(name: str, first: str, *, same: bool) -> RowError:
    """The error of a row that describes again what the row at `first` describes."""
    if same:
        return RowError(f"{name} repeats {first}", "duplicate")
    message = f"{name} has other content in {first}, which is used: remove one of the two"
    return RowError(message, "conflicting_duplicate")


class NoRowError(RowError):
    """A line that does not have the form of a row; it may be the rest of the text before it."""


def no_row(line: str, message: str, *, attempt: bool = False, row: Any = None) -> RowError:
    """The error of a line that cannot be read as a row.

    Args:
      line: in which NUL is looked for, because that is then the reason.
      message: what is wrong otherwise.
      attempt: whether the line was certainly meant as a row and is not the rest of a text.
      row: what could be read of it.
    """
    if NUL_MARK in line and (fault := text_fault(line)) is not None:
        return RowError(f"the row {fault.message}", fault.reason, row)
    return (RowError if attempt else NoRowError)(message, row=row)


def uncut(rows: Iterable[tuple[int, Row | RowError]]) -> Iterator[tuple[int, Row | RowError]]:
    """Yields rows whose last field is text, with an error for each whose text may be cut.

    A line end in such a text leaves a row that looks complete and then a line that is no row. The
    audio has all of the text, so the row must not be used.
    """
    held: tuple[int, Row | RowError] | None = None
    for item in rows:
        if held is not None:
            if isinstance(item[1], NoRowError) and not isinstance(held[1], RowError):
                message = f"line {item[0]} is no row and may be the rest of this text"
                held = held[0], RowError(f"{message}: remove the line end from it", row=held[1])
            yield held
        held = item
    if held is not None:
        yield held
