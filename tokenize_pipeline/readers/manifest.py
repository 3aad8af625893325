"""Speech described by a manifest: JSONL, or CSV with a header, one utterance a row.

    {"audio": "clips/a.wav", "text": "Good morning.", "document": "day-1", "order": 0}

Columns: `audio` (path) and `text` are required; `document`, `order`, `start` and `end` (seconds in the
file), `speaker` and `language` are optional, as are `member` and `seconds` where `audio` is an archive
(see `UtteranceSource`); others are ignored. Rows of one document id form one
document, sorted by `order` (rows without it come last, in the order of the file). A row without a
document id is a document of its own, named after its audio and times.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._lines import (
    RowError,
    content_suffix,
    json_object,
    lines,
    optional_string,
)

KIND = "speech"
REQUIRED = ("audio", "text")
_LARGEST_FIELD = 2**30


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields first the rejected rows, then the documents by the first appearance of their id."""
    documents: dict[object, list[tuple[float, int, str, UtteranceSource]]] = {}
    count = 0
    for path in inputs:
        for number, row in _rows(path):
            where = f"{path.name}:{number}"
            count += 1
            try:
                if isinstance(row, RowError):
                    raise row
                identity, order, utterance = _utterance(row, where)
            except RowError as error:
                yield _rejected(row, where, error)
                continue
            name = _own_name(utterance) if identity is None else identity
            # A row without an id never joins another row, even one of the same name.
            key = count if identity is None else identity
            documents.setdefault(key, []).append((order, count, name, utterance))
    for rows in documents.values():
        rows.sort(key=lambda row: row[:2])
        yield DocumentSource(rows[0][2], tuple(row[3] for row in rows))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    suffix = content_suffix(path)
    if suffix == ".csv":
        yield from _csv_rows(path)
    elif suffix in (".jsonl", ".json", ".ndjson"):
        for number, line in lines(path):
            if not line.strip():
                continue
            try:
                yield number, json_object(line)
            except RowError as error:
                yield number, error
    else:
        raise UserError(f"{path} is neither .jsonl nor .csv (compressed or not): rename it")


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yields (line where the row begins, row); a malformed row of several lines once for each line.

    Raises:
      UserError: for a wrong header, or a quote that is open where the file ends: how many rows it has
        swallowed cannot be told, so they cannot be counted as bad ones.
    """
    csv.field_size_limit(_LARGEST_FIELD)
    ended = False

    def content() -> Iterator[str]:
        nonlocal ended
        for _, line in lines(path):
            yield line
        ended = True

    reader = csv.reader(content(), strict=True)
    header: list[str] | None = None
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if ended:
                raise UserError(
                    f"{path}: the row that begins in line {first} has a quote that is never closed: "
                    'close it with ", or write "" for a quote inside a field'
                ) from None
            if header is None:
                raise UserError(f"{path} has no readable header in line {first}: {error}") from None
            # A stray quote swallows the lines up to the next quote: each may have been a row.
            for number in range(first, reader.line_num + 1):
                yield number, RowError(f"not a CSV row: {error}")
            continue
        if not fields:  # an empty line
            continue
        if header is None:
            header = fields
            _check_header(path, header)
        elif len(fields) != len(header):
            amount = "more" if len(fields) > len(header) else "fewer"
            yield first, RowError(f"{amount} fields than the header has columns")
        else:
            yield first, dict(zip(header, fields, strict=True))
    if header is None:
        _check_header(path, [])


def _check_header(path: Path, header: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r} in its header {list(header)}")


def _utterance(row: dict[str, Any], where: str) -> tuple[str | None, float, UtteranceSource]:
    """(document id, sort key, utterance) of one row; RowError says what is wrong with it."""
    audio = optional_string(row, "audio")
    if audio is None:
        raise RowError("'audio' is missing or empty")
    text = row.get("text")
    # An empty transcript is a fault of the utterance, not of the row: it is judged later.
    if not isinstance(text, str):
        raise RowError("'text' is missing" if text is None else f"'text' is {text!r}, not a string")
    order = _number(row, "order")
    return (
        optional_string(row, "document"),
        math.inf if order is None else order,
        UtteranceSource(
            text,
            audio,
            _number(row, "start"),
            _number(row, "end"),
            optional_string(row, "speaker"),
            optional_string(row, "language"),
            optional_string(row, "member"),
            _number(row, "seconds"),
            where,
        ),
    )


def _number(row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"{name!r} is {value!r}, not a finite number")
    return number


def _own_name(utterance: UtteranceSource) -> str:
    times = ""
    if utterance.start is not None or utterance.end is not None:
        first = "" if utterance.start is None else repr(utterance.start)
        last = "" if utterance.end is None else repr(utterance.end)
        times = f"#{first}-{last}"
    member = f"/{utterance.member}" if utterance.member else ""
    return f"{utterance.audio}{member}{times}"


def _rejected(row: dict[str, Any] | RowError, where: str, error: RowError) -> Rejected:
    document = row.get("document") if isinstance(row, dict) else None
    known = isinstance(document, str) and document.isprintable()
    return Rejected(error.reason, str(error), where, document if known else None)
