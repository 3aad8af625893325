"""Reads text without audio from JSONL, Parquet, or plain text with one document per line.

`.jsonl`, `.json` and `.ndjson` files (compressed or not) have one object per line, and `.parquet`
files have one document per row. Other files are plain text; empty lines are ignored. Use JSONL or
Parquet for documents of several lines. These corpora are read as published:

    Nemotron-CC v1   quality=high/kind=actual/kind2=actual/CC-MAIN-2013-20-part-00016.jsonl.zstd
                     https://data.commoncrawl.org/contrib/Nemotron/Nemotron-CC/index.html
    FineWeb          data/CC-MAIN-2024-10/000_00000.parquet
                     https://huggingface.co/datasets/HuggingFaceFW/fineweb

The text is the first existing field of `text`, `content` and `raw_content`; the id of the document
is the first of `id`, `uuid` and `warc_record_id`. Several texts may be derived from one page (as in
the synthetic parts of Nemotron-CC), so eight hex digits of the hash of the text are appended to a
`warc_record_id`. URLs are not used as ids, because pages are crawled repeatedly. A document without
an id is named after the hash of its text, so that each text is used only once.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._lines import content_suffix, lines
from tokenize_pipeline.readers._rows import (
    RowError,
    json_object,
    optional_string,
    parse_rows,
)
from tokenize_pipeline.text_faults import decode_text

if TYPE_CHECKING:
    import pyarrow

KIND = "text"
TEXT_FIELDS = ("text", "content", "raw_content")
ID_FIELDS = ("id", "uuid", "warc_record_id")
_ROWS = 64  # rows of a Parquet file that are read at a time
_BUFFER_BYTES = 1 << 20


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields a document with one utterance for each line or row, in the order of the files."""
    for path in inputs:
        for number, row in _rows(path):
            where = f"{path.name}:{number}"
            try:
                text, name = (row, None) if isinstance(row, str) else _text_and_id(row)
                if name is None:
                    name = f"text-{_digest(text)[:24]}"
                yield DocumentSource(name, (UtteranceSource(text, where=where),))
            except RowError as error:
                yield error.rejected(where)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str | RowError]]:
    suffix = content_suffix(path)
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix in (".jsonl", ".json", ".ndjson"):
        return parse_rows(lines(path), json_object)
    return ((number, line) for number, line in lines(path) if line.strip())


def _text_and_id(row: dict[str, Any] | RowError) -> tuple[str, str | None]:
    if isinstance(row, RowError):
        raise row
    field = next((name for name in TEXT_FIELDS if name in row), TEXT_FIELDS[0])
    text = row.get(field)
    if not isinstance(text, str):
        raise RowError(f"{field!r} is {text!r}, not a string")
    found = ((name, optional_string(row, name)) for name in ID_FIELDS)
    source, name = next((pair for pair in found if pair[1]), ("", None))
    if source == "warc_record_id":
        name = f"{name}#{_digest(text)[:8]}"
    return text, name


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number from 1, row) of a Parquet file, with memory independent of the file size.

    A row has the first existing column of `TEXT_FIELDS`, and all existing columns of `ID_FIELDS`.
    NULs and bytes that are not UTF-8 become lone surrogates, as in `_lines.lines`.

    Raises:
      UserError: if the file is missing, damaged or not Parquet, or has no text column.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        # Without pre-buffering, columns are read page by page, not one whole row group at a time.
        with parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
        ) as file:
            names = _columns(path, file.schema_arrow)
            for batch in file.iter_batches(_ROWS, columns=names, use_threads=False):
                columns = [_values(batch.column(name)) for name in names]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield number, dict(zip(names, values, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as Parquet after row {number}: {cause}; "
            "download it again or leave it out of --input"
        ) from None


def _columns(path: Path, schema: "pyarrow.Schema") -> list[str]:
    text = next((name for name in TEXT_FIELDS if name in schema.names), None)
    if text is None:
        raise UserError(
            f"{path} has the columns {', '.join(schema.names)}, but none named {' or '.join(TEXT_FIELDS)}: "
            "rename the column of the text"
        )
    kind = schema.field(text).type
    if not _is_text(kind):
        raise UserError(
            f"{path}: column {text!r} is {kind}, not text: rename the text column to {text!r}"
        )
    return [text, *(name for name in ID_FIELDS if name in schema.names)]


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in (*tests, types.is_binary, types.is_large_binary))


def _values(column: "pyarrow.Array") -> list[Any]:
    """Returns the cells of a column.

    Text is decoded here, because Arrow rejects a whole batch for one byte that is not UTF-8.
    """
    import pyarrow
    from pyarrow import types

    if not _is_text(column.type):
        return column.to_pylist()
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    cells = column.cast(pyarrow.large_binary()).to_pylist()
    return [None if cell is None else decode_text(cell) for cell in cells]
