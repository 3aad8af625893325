"""Reads speech from a manifest (JSONL, or CSV or TSV with a header), one utterance per row.

    {"audio": "clips/a.wav", "text": "Good morning.", "document": "day-1", "order": 0}

The columns `audio` (path) and `text` are required, and so is `member` if `audio` is an archive.
`document`, `order`, `start` and `end` (seconds in the file), `seconds`, `speaker` and `language`
are optional (see `UtteranceSource`). Other columns are ignored. Rows with the same document id form
a document, sorted by `order` (rows without `order` are last, in the order of the file). A row
without a document id is a separate document, named after its audio, member and times.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._lines import content_suffix, lines
from tokenize_pipeline.readers._rows import (
    Repeats,
    RowError,
    csv_rows,
    json_object,
    optional_string,
    parse_rows,
    required_text,
    tsv_rows,
)
from tokenize_pipeline.text_faults import text_fault

KIND = "speech"
REQUIRED = ("audio", "text")


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields the unusable rows, then the documents in the order of the first row of each.

    A repeated row is yielded as a `Rejected` before its document.
    """
    # Document id, or number of a row without one -> (order, row number, utterance) of each row.
    documents: dict[str | int, list[tuple[float, int, UtteranceSource]]] = {}
    count = 0
    for path in inputs:
        for number, row in _rows(path):
            where = f"{path.name}:{number}"
            count += 1
            try:
                if isinstance(row, RowError):
                    raise row
                document, order, utterance = _utterance(row, where)
            except RowError as error:
                name = row.get("document") if isinstance(row, dict) else None
                known = isinstance(name, str) and name.isprintable()
                yield error.rejected(where, name if known else None)
                continue
            key = count if document is None else document
            documents.setdefault(key, []).append((order, count, utterance))
    for key, rows in documents.items():
        name = _default_name(rows[0][2]) if isinstance(key, int) else key
        if len(rows) == 1:
            yield DocumentSource(name, (rows[0][2],))
            continue
        kept, repeats = [], Repeats()
        for order, count, utterance in rows:
            sound = (utterance.audio, utterance.member, utterance.start, utterance.end)
            text = utterance.text.strip()
            try:
                if text_fault(text) is None:  # otherwise the text is rejected later
                    repeats.check(sound, text, utterance.where, str(utterance.audio))
            except RowError as error:
                yield error.rejected(utterance.where, name)
            else:
                kept.append((order, count, utterance))
        kept.sort(key=lambda item: item[:2])
        yield DocumentSource(name, tuple(item[2] for item in kept))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    suffix = content_suffix(path)
    if suffix == ".csv":
        return csv_rows(lines(path), str(path), REQUIRED)
    if suffix == ".tsv":
        return map(_without_csv_quotes, tsv_rows(lines(path), str(path), REQUIRED))
    if suffix in (".jsonl", ".json", ".ndjson"):
        return parse_rows(lines(path), json_object)
    raise UserError(f"{path} is neither .jsonl nor .csv nor .tsv (compressed or not): rename it")


def _without_csv_quotes(
    numbered: tuple[int, dict[str, Any] | RowError],
) -> tuple[int, dict[str, Any] | RowError]:
    """Returns a TSV row, or an error if a field is quoted as in CSV (with doubled quotes)."""
    number, row = numbered
    for name, field in row.items() if isinstance(row, dict) else ():
        inner = field[1:-1].replace('""', "")
        if '""' in field and field[0] == field[-1] == '"' and '"' not in inner:
            message = f"{name!r} is quoted as in CSV: remove the quotes, or convert the file to CSV"
            return number, RowError(message)
    return numbered


def _utterance(row: dict[str, Any], where: str) -> tuple[str | None, float, UtteranceSource]:
    """Returns (document id, sort key, utterance) of a row; raises RowError if it is unusable."""
    audio = optional_string(row, "audio")
    if audio is None:
        raise RowError("'audio' is missing or empty")
    order = _number(row, "order")
    utterance = UtteranceSource(
        required_text(row),
        audio,
        _number(row, "start"),
        _number(row, "end"),
        optional_string(row, "speaker"),
        optional_string(row, "language"),
        optional_string(row, "member"),
        _number(row, "seconds"),
        where,
    )
    return optional_string(row, "document"), math.inf if order is None else order, utterance


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
