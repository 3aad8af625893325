"""Lines of plain and compressed text files, and JSON objects one a line."""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from soda_jax.errors import UserError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_COMPRESSED_BLOCK = 1 << 14  # bytes; what it unpacks to is held at once


class RowError(ValueError):
    """A row that cannot be used, with the reason under which it goes to quarantine."""

    def __init__(self, message: str, reason: str = "malformed_row"):
        """Args: message: what is wrong. reason: a key of `tokenize_pipeline.quarantine.REASONS`."""
        super().__init__(message)
        self.reason = reason


def content_suffix(path: Path) -> str:
    """The suffix that tells the format: `.jsonl` for `a.jsonl.gz`."""
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
    """The content of a Zstandard file of any number of frames.

    The library's own stream ends without a word where the file is cut short; here it is an EOFError.
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

    Bytes that are not UTF-8 become lone surrogates, so that only the rows that hold them are lost:
    see `optional_string`. A byte order mark is dropped.

    Raises:
      UserError: if the file is missing or its compressed stream is damaged.
    """
    try:
        with _open(path) as file:
            yield from content_lines(file)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except Exception as error:
        if type(error).__name__ == "ZstdError":  # imported only where a .zst file is read
            raise UserError(f"{path} cannot be read: {error}") from None
        raise


def content_lines(content: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """Yields what `lines` yields, of lines of bytes that are at hand."""
    for number, line in enumerate(content, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        yield number, line.decode("utf-8", "surrogateescape")


def optional_string(row: dict[str, Any], name: str) -> str | None:
    """Field `name` as a string; None where it is absent, null or empty. Integers are written out.

    Raises:
      RowError: if it is of another type or not valid UTF-8.
    """
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"{name!r} is {value!r}, not a string")
    try:
        str(value).encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(f"{name!r} is not valid UTF-8", "invalid_utf8") from None
    return str(value)


def json_object(line: str) -> dict[str, Any]:
    """The JSON object on `line`; RowError with the cause if it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise RowError(f"not a JSON object but {type(value).__name__}")
    return value
