"""Text without audio: JSONL, Parquet, or plain text with one document per line.

`.jsonl`, `.json` and `.ndjson` files (compressed or not) have one object per line, `.parquet` files one
document per row. Other files are plain text; empty lines are ignored. Use JSONL or Parquet for documents
of several lines. These corpora are read as published:

    Nemotron-CC v1   quality=high/kind=actual/kind2=actual/CC-MAIN-2013-20-part-00016.jsonl.zstd
                     https://data.commoncrawl.org/contrib/Nemotron/Nemotron-CC/index.html
    FineWeb          data/CC-MAIN-2024-10/000_00000.parquet
                     https://huggingface.co/datasets/HuggingFaceFW/fineweb

The text is the first of the fields `text`, `content` and `raw_content`, the id of the document the first
of `id`, `uuid` and `warc_record_id`. Several texts may be derived from one page (as in the synthetic parts
of Nemotron-CC), so eight digits of the hash of the text are appended to a `warc_record_id`. A URL is not an
id, because pages are crawled repeatedly. A document without an id is named by the hash of its text, so that
a text is used only once.
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
    """Yields one document of one utterance per line or row, in the order of the files."""
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
