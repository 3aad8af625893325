"""Text without audio: JSONL, Parquet, or plain text with one document a line.

`.jsonl`, `.json` and `.ndjson` files (compressed or not) hold one object a line, `.parquet` files one
document a row; every other file is plain text, where empty lines mean nothing. A document that has
several lines belongs in JSONL or Parquet. So these corpora are read as they are published:

    Nemotron-CC v1   quality=high/kind=actual/kind2=actual/CC-MAIN-2013-20-part-00016.jsonl.zstd
                     https://data.commoncrawl.org/contrib/Nemotron/Nemotron-CC/index.html
    FineWeb          data/CC-MAIN-2024-10/000_00000.parquet
                     https://huggingface.co/datasets/HuggingFaceFW/fineweb

The text is the first of the fields `text`, `content` and `raw_content`, the id of the document the first
of `id`, `uuid` and `warc_record_id`. Several texts may have been made from one page (in the synthetic
parts of Nemotron-CC they are), so a `warc_record_id` is followed by eight digits of the hash of the text.
An address is no id, because pages are crawled again. A document without an id is named by the hash of
its text, so that the same text is never taken twice.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._lines import (
    RowError,
    content_suffix,
    json_object,
    lines,
    optional_string,
)
from tokenize_pipeline.readers._parquet_text import parquet_rows

KIND = "text"
TEXT_FIELDS = ("text", "content", "raw_content")
ID_FIELDS = ("id", "uuid", "warc_record_id")


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields one document of one utterance a line or row, in the order of the files."""
    for path in inputs:
        file, suffix = path.name, content_suffix(path)
        if suffix == ".parquet":
            for number, row in parquet_rows(path, TEXT_FIELDS, ID_FIELDS):
                yield _row_document(row, f"{file}:{number}")
            continue
        is_json = suffix in (".jsonl", ".json", ".ndjson")
        for number, line in lines(path):
            if line.strip():
                where = f"{file}:{number}"
                yield _json_document(line, where) if is_json else _document(line, None, where)


def _json_document(line: str, where: str) -> DocumentSource | Rejected:
    try:
        return _row_document(json_object(line), where)
    except RowError as error:
        return Rejected(error.reason, str(error), where)


def _row_document(row: dict[str, Any], where: str) -> DocumentSource | Rejected:
    field = next((name for name in TEXT_FIELDS if name in row), TEXT_FIELDS[0])
    text = row.get(field)
    try:
        if not isinstance(text, str):
            raise RowError(f"{field!r} is {text!r}, not a string")
        found = ((name, optional_string(row, name)) for name in ID_FIELDS)
        source, name = next((pair for pair in found if pair[1]), ("", None))
    except RowError as error:
        return Rejected(error.reason, str(error), where)
    if source == "warc_record_id":
        name = f"{name}#{_digest(text)[:8]}"
    return _document(text, name, where)


def _document(text: str, name: str | None, where: str) -> DocumentSource:
    name = name or f"text-{_digest(text)[:24]}"
    return DocumentSource(name, (UtteranceSource(text, where=where),))


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()
