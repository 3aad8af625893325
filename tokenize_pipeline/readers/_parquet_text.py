"""Reads rows of text from Parquet files in small batches."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soda_jax.errors import UserError
from tokenize_pipeline.text_faults import decode_text

if TYPE_CHECKING:
    import pyarrow

_ROWS = 64  # rows in memory, with their pages
_BUFFER_BYTES = 1 << 20


def parquet_rows(
    path: Path, texts: Sequence[str], ids: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number from 1, row) of a Parquet file; memory does not grow with file or row group.

    A row has the first column of `texts` that exists, and all existing columns of `ids`. Bytes that are not UTF-8
    and NULs become lone surrogates, as in `_lines.lines`.

    Raises:
      UserError: if the file is missing, damaged or not Parquet, or has no text column.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        # Without pre-buffering a column is read page by page, not a whole row group at once.
        with parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
        ) as file:
            names = _columns(path, file.schema_arrow, texts, ids)
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


def _columns(
    path: Path, schema: "pyarrow.Schema", texts: Sequence[str], ids: Sequence[str]
) -> list[str]:
    text = next((name for name in texts if name in schema.names), None)
    if text is None:
        raise UserError(
            f"{path} has the columns {', '.join(schema.names)}, but none named {' or '.join(texts)}: "
            "rename the column of the text"
        )
    kind = schema.field(text).type
    if not _is_text(kind):
        raise UserError(f"{path}: column {text!r} is {kind}, not text; rename another column")
    return [text, *(name for name in ids if name in schema.names)]


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in (*tests, types.is_binary, types.is_large_binary))


def _values(column: "pyarrow.Array") -> list[Any]:
    """Returns the cells of a column. Text is decoded here, as Arrow rejects a whole batch for one byte."""
    import pyarrow
    from pyarrow import types

    if not _is_text(column.type):
        return column.to_pylist()
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    cells = column.cast(pyarrow.large_binary()).to_pylist()
    return [None if cell is None else decode_text(cell) for cell in cells]
