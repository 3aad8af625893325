"""Speech described by a manifest: JSONL, or CSV or TSV with a header, one utterance per row.

    {"audio": "clips/a.wav", "text": "Good morning.", "document": "day-1", "order": 0}

Columns: `audio` (path) and `text` are required; `document`, `order`, `start` and `end` (seconds in the
file), `speaker` and `language` are optional, as are `member` and `seconds` where `audio` is an archive
(see `UtteranceSource`); others are ignored. Rows with the same document id form a document, sorted by
`order` (rows without it are last, in the order of the file). A row without a document id is a separate
document, named after its audio and times.
"""

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
from tokenize_pipeline.readers._rows import Repeats
from tokenize_pipeline.readers._tables import Table, csv_table, tsv_table
from tokenize_pipeline.text_faults import text_fault

KIND = "speech"
REQUIRED = ("audio", "text")

_Row = tuple[float, int, str, UtteranceSource]  # (order, number of the row, document id, utterance)


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields the unusable rows, then the documents in the order of the first row of each.

    Repeated rows of a document are yielded before it.
    """
    documents: dict[object, list[_Row]] = {}
    count = 0
    for path in inputs:
        file = path.name
        for number, row in _rows(path):
            where = f"{file}:{number}"
            count += 1
            try:
                if isinstance(row, RowError):
                    raise row
                identity, order, utterance = _utterance(row, where)
            except RowError as error:
                yield _rejected(row, where, error)
                continue
            name = _default_name(utterance) if identity is None else identity
            # A row without an id is never merged with another row, even of the same name.
            key = count if identity is None else identity
            documents.setdefault(key, []).append((order, count, name, utterance))
    for rows in documents.values():
        if len(rows) > 1:
            rows, repeated = _without_repeats(rows)
            yield from repeated
            rows.sort(key=lambda row: row[:2])
        yield DocumentSource(rows[0][2], tuple(row[3] for row in rows))


def _without_repeats(rows: list[_Row]) -> tuple[list[_Row], list[Rejected]]:
    """The rows of a document, in the order of the files, that describe a sound for the first time."""
    if len({row[3].audio for row in rows}) == len(rows):
        return rows, []
    kept, rejected, repeats = [], list[Rejected](), Repeats()
    for row in rows:
        _, _, document, utterance = row
        sound = (utterance.audio, utterance.member, utterance.start, utterance.end)
        text = utterance.text.strip()
        try:
            if text_fault(text) is None:  # else it is judged later, by its text
                repeats.check(sound, text, utterance.where, str(utterance.audio))
        except RowError as error:
            rejected.append(Rejected(error.reason, str(error), utterance.where, document))
        else:
            kept.append(row)
    return kept, rejected


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    suffix = content_suffix(path)
    if suffix == ".csv":
        return _named(csv_table(lines(path), str(path), REQUIRED))
    if suffix == ".tsv":
        rows = _named(tsv_table(lines(path), str(path), REQUIRED))
        return ((n, r if isinstance(r, RowError) else _without_csv_quotes(r)) for n, r in rows)
    if suffix in (".jsonl", ".json", ".ndjson"):
        return _json_rows(path)
    raise UserError(f"{path} is neither .jsonl nor .csv nor .tsv (compressed or not): rename it")


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    for number, line in lines(path):
        if line.strip():
            try:
                yield number, json_object(line)
            except RowError as error:
                yield number, error


def _named(table: Table) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yields (number, fields by column name)."""
    for number, fields in table.rows:
        if isinstance(fields, RowError):
            yield number, fields
        else:
            yield number, dict(zip(table.header, fields, strict=True))


def _without_csv_quotes(row: dict[str, Any]) -> dict[str, Any] | RowError:
    """Returns the row of a TSV file, or an error if a field is quoted as in CSV (with doubled quotes)."""
    for name, field in row.items():
        if (
            '""' in field
            and field[0] == field[-1] == '"'
            and '"' not in field[1:-1].replace('""', "")
        ):
            return RowError(f"{name!r} is quoted as in CSV: write it without quotes, or write .csv")
    return row


def _utterance(row: dict[str, Any], where: str) -> tuple[str | None, float, UtteranceSource]:
    """Returns (document id, sort key, utterance) of one row; RowError if it is unusable."""
    audio = optional_string(row, "audio")
    if audio is None:
        raise RowError("'audio' is missing or empty")
    text = row.get("text")
    # An empty transcript is found later, as for all readers.
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


def _default_name(utterance: UtteranceSource) -> str:
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
