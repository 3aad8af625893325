"""Text without audio: JSONL with a "text" field, or plain text with one document a line.

`.jsonl`, `.json` and `.ndjson` files (compressed or not) hold one object a line, `{"text": …}` and
optionally `"id"`; every other file is plain text, where empty lines mean nothing. A document that has
several lines belongs in JSONL. A document without an id is named by the hash of its text, so that the
same text is never taken twice.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._lines import (
    RowError,
    content_suffix,
    json_object,
    lines,
    optional_string,
)

KIND = "text"


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields one document of one utterance a line, in the order of the files."""
    for path in inputs:
        is_json = content_suffix(path) in (".jsonl", ".json", ".ndjson")
        for number, line in lines(path):
            if line.strip():
                where = f"{path.name}:{number}"
                yield _json_document(line, where) if is_json else _document(line, None, where)


def _json_document(line: str, where: str) -> DocumentSource | Rejected:
    try:
        row = json_object(line)
        name, text = optional_string(row, "id"), row.get("text")
        if not isinstance(text, str):
            raise RowError(f"'text' is {text!r}, not a string")
    except RowError as error:
        return Rejected(error.reason, str(error), where)
    return _document(text, name, where)


def _document(text: str, name: str | None, where: str) -> DocumentSource:
    if name is None:
        content = text.strip().encode("utf-8", "surrogatepass")
        name = "text-" + hashlib.sha256(content).hexdigest()[:24]
    return DocumentSource(name, (UtteranceSource(text, where=where),))
