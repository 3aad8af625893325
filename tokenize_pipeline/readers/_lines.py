"""Reads lines of UTF-8 from plain and compressed text files, and from members of archives.

In all readers, a line ends with LF or CRLF. Unicode's other line breaks (CR alone, VT, FF, NEL,
U+2028, U+2029) are part of the text, so `str.splitlines` must not be used here.

UTF-16 and UTF-32 are recognized by their byte order mark or by the positions of their NUL bytes,
and are rejected with the name of the encoding. They are not converted, because a file may contain
several encodings, for example if a shell appended UTF-16 to UTF-8.
"""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from soda_jax.errors import UserError
from tokenize_pipeline.text_faults import NUL_MARK

HEAD_BYTES = 4096  # number of leading bytes from which the encoding is detected
_MARKS = {  # UTF-32 first, because the mark of UTF-32-LE starts with that of UTF-16-LE
    "UTF-32-LE": codecs.BOM_UTF32_LE,
    "UTF-32-BE": codecs.BOM_UTF32_BE,
    "UTF-16-LE": codecs.BOM_UTF16_LE,
    "UTF-16-BE": codecs.BOM_UTF16_BE,
}
_SPACE_OF_UTF8 = re.compile(rb"(?<=[\t\n\r -~\x80-\xff])[ \n](?=[\t\n\r -~\x80-\xff]|\Z)")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line with newline) of a UTF-8 file, which may be compressed.

    NULs and bytes that are not UTF-8 become lone surrogates, so that only the rows that contain
    them are rejected (see `text_faults`). A byte order mark is removed.

    Raises:
      UserError: if the file is missing, is UTF-16 or UTF-32, or its compressed stream is damaged.
    """
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            yield from _lines(file, str(path))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def content_lines(content: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of `content`, as `lines` does for a file; `name` is for error messages.

    Raises:
      UserError: if the content is UTF-16 or UTF-32.
    """
    return _lines(io.BytesIO(content), name)


def content_suffix(path: Path) -> str:
    """Returns the suffix of the decompressed file, such as `.jsonl` for `a.jsonl.gz`."""
    return (path.with_suffix("") if path.suffix in _OPENERS else path).suffix.lower()


def _open_zstandard(path: Path, mode: str) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


_OPENERS: dict[str, Callable[[Path, str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
    ".zstd": _open_zstandard,
}


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    head = file.read(HEAD_BYTES)
    check_encoding(head, name)
    first = io.BytesIO(head.removeprefix(codecs.BOM_UTF8) + file.readline())  # ends at a newline
    for number, line in enumerate(chain(first, file), 1):
        text = line.decode("utf-8", "surrogateescape")
        yield number, text.replace("\0", NUL_MARK) if "\0" in text else text


def check_encoding(head: bytes, name: str) -> None:
    """Raises UserError with the name of the encoding if text that begins with `head` is UTF-16/32.

    Args:
      head: see `other_encoding`.
      name: name of the file in the error message.
    """
    if (encoding := other_encoding(head)) is not None:
        source = encoding.replace("-LE", "LE").replace("-BE", "BE")
        fix = f"convert it to UTF-8, as in iconv -f {source} -t UTF-8 FILE > NEW"
        raise UserError(f"{name} is {encoding} text: {fix}")


def other_encoding(head: bytes) -> str | None:
    """Returns the encoding of a text that begins with `head`; None for UTF-8 and unknown encodings.

    Args:
      head: the first bytes of the text, at least `HEAD_BYTES` or the whole text.
    """
    for name, mark in _MARKS.items():
        if head.startswith(mark):
            return name
    head = head[:HEAD_BYTES]
    return next((name for name in _MARKS if _may_be(head, name)), None) if b"\0" in head else None


def _may_be(head: bytes, name: str) -> bool:
    """Returns whether `head`, which contains NULs, is in this encoding and not UTF-8 with NULs."""
    unit = 4 if "32" in name else 2
    head = head[: len(head) // unit * unit]
    try:
        # A surrogate pair that is cut off at the end of `head` is ignored.
        text = codecs.getincrementaldecoder(name)().decode(head)
    except UnicodeDecodeError:
        return False
    if not text or "\0" in text:
        return False
    if unit == 4:  # every fourth byte is NUL, and all characters are valid
        return True
    # In UTF-16, a space or line end is next to a NUL; in UTF-8 with stray NULs, it usually is not.
    spaces, spaces_of_utf8 = text.count(" ") + text.count("\n"), len(_SPACE_OF_UTF8.findall(head))
    if spaces or spaces_of_utf8:
        return spaces > spaces_of_utf8
    return 4 * sum(character < "\u0100" for character in text) >= 3 * len(text)
