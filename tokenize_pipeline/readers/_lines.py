"""Reads lines of plain and compressed text files and of archive members, and JSON objects from them.

For all readers, a line ends with LF or CRLF. Other line ends of Unicode (a CR without LF, VT, FF, NEL,
U+2028, U+2029) are part of the text. So do not use `str.splitlines` here.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

from soda_jax.errors import UserError
from tokenize_pipeline.readers._encodings import HEAD_BYTES, check_encoding, other_encoding
from tokenize_pipeline.text_faults import NUL_MARK, decode_text, text_fault

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_COMPRESSED_BLOCK = 1 << 14  # bytes; its decompressed content is in memory


class RowError(ValueError):
    """A row is unusable.

    Attributes:
      reason: reason in the quarantine, a key of `tokenize_pipeline.quarantine.REASONS`.
      row: the readable part of the row, if any.
    """

    def __init__(self, message: str, reason: str = "malformed_row", row: Any = None):
        """Creates the error; `message` is one line, for the others see the attributes."""
        super().__init__(message)
        self.reason = reason
        self.row = row


def content_suffix(path: Path) -> str:
    """Returns the suffix of the decompressed file: `.jsonl` for `a.jsonl.gz`."""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix.lower()


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".bz2":
        return bz2.open(path, "rb")
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    if path.suffix in (".zst", ".zstd"):
        return cast(IO[bytes], io.BufferedReader(_ZstandardFile(path)))
    return path.open("rb")


class _ZstandardFile(io.RawIOBase):
    """The content of a Zstandard file with any number of frames.

    A truncated file raises EOFError; the stream of the library ends without an error.
    """

    def __init__(self, path: Path):
        import zstandard

        self._file, self._library = path.open("rb"), zstandard
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed, self._content = b"", b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            self._packed = self._packed or self._file.read(_COMPRESSED_BLOCK)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a Zstandard frame")
                return 0
            frame = self._frame or self._library.ZstdDecompressor().decompressobj()
            self._content = frame.decompress(self._packed)
            self._packed, self._frame = frame.unused_data, None if frame.eof else frame
        count = min(len(buffer), len(self._content))
        buffer[:count], self._content = self._content[:count], self._content[count:]
        return count


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, line with its end) of a UTF-8 file, decompressed by its suffix.

    Bytes that are not UTF-8 and NULs become lone surrogates, so that only the rows that contain them are
    rejected, see `text_faults`. A byte order mark is removed.

    Raises:
      UserError: if the file is missing, is UTF-16 or UTF-32, or its compressed stream is damaged.
    """
    try:
        with _open(path) as file:
            yield from _lines(file, str(path))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except Exception as error:
        if type(error).__name__ == "ZstdError":  # imported only where a .zst file is read
            raise UserError(f"{path} cannot be read: {error}") from None
        raise


def content_lines(content: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of `content` as `lines` does for a file; `name` is for messages.

    Raises:
      UserError: if it is UTF-16 or UTF-32.
    """
    return _lines(io.BytesIO(content), name)


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    head = file.read(HEAD_BYTES)
    check_encoding(head, name)
    first = io.BytesIO(head.removeprefix(codecs.BOM_UTF8) + file.readline())  # whole lines
    for number, line in enumerate(chain(first, file), 1):
        text = line.decode("utf-8", "surrogateescape")
        yield number, text.replace("\0", NUL_MARK) if "\0" in text else text


def utf8_text(content: bytes) -> str:
    """Decodes a small file of an archive; invalid bytes become surrogates as in `lines`.

    Raises:
      RowError: if it is UTF-16 or UTF-32.
    """
    if (encoding := other_encoding(content)) is not None:
        raise RowError(f"the file is {encoding} text, not UTF-8", "invalid_utf8")
    return decode_text(content.removeprefix(codecs.BOM_UTF8))


def optional_string(row: dict[str, Any], name: str) -> str | None:
    """Returns field `name` as a string; None if it is absent, null or empty. Integers are converted.

    Raises:
      RowError: if it has another type, is not valid UTF-8 or contains NUL.
    """
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"{name!r} is {value!r}, not a string")
    text = str(value)
    if not text.isascii() and (fault := text_fault(text)) is not None:
        raise RowError(f"{name!r} {fault.message}", fault.reason)
    return text


class RepeatedFields(dict[str, Any]):
    """A JSON object in which a field occurs twice. The dict has the last value of each field.

    Attributes:
      pairs: all fields in order.
    """

    def __init__(self, pairs: list[tuple[str, Any]]):
        """Creates the object from all fields in order."""
        super().__init__(pairs)
        self.pairs = pairs

    def first_repeated(self) -> str:
        """Returns the first field that occurs more than once."""
        counts = Counter(name for name, _ in self.pairs)
        return next(name for name, count in counts.items() if count > 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else RepeatedFields(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def json_value(text: str) -> Any:
    """Parses JSON; objects with a repeated field become `RepeatedFields`.

    Raises:
      ValueError, RecursionError: if the text is not JSON.
    """
    return _DECODER.decode(text)


def json_object(line: str) -> dict[str, Any]:
    """Parses the JSON object on `line`; RowError if it is not an object or a field occurs twice."""
    try:
        value = json_value(line)
    except (ValueError, RecursionError) as error:
        if NUL_MARK in line and (fault := text_fault(line)) is not None:
            raise RowError(f"the row {fault.message}", fault.reason) from None
        raise RowError(f"not a JSON object: {error}") from None
    if isinstance(value, RepeatedFields):
        raise RowError(f"field {value.first_repeated()!r} occurs twice")
    if not isinstance(value, dict):
        raise RowError(f"not a JSON object but {type(value).__name__}")
    return value
