"""Defines types and functions that all container parsers share."""

import io
from dataclasses import dataclass
from typing import BinaryIO, Literal

Reason = Literal[
    "missing",
    "truncated",
    "empty",
    "not_finite",
    "wrong_scale",
    "silent",
    "channels_cancel",
    "undecodable",
    "end_before_start",
]


class SoundError(Exception):
    """Raised for a sound that cannot be used; the message does not contain the file's name."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Part:
    """A range of bytes that libsndfile decodes as one sound file.

    Attributes:
      start: offset of the first byte.
      stop: offset after the last byte.
      head: corrected header to put before the range; empty if the range starts with a correct
        header.
      samples: samples per channel; None if libsndfile reports the correct number.
    """

    start: int
    stop: int
    head: bytes = b""
    samples: int | None = None


class PartFile(io.RawIOBase):
    """A read-only file with the content of a `Part` of an open file; `tell` is inherited."""

    def __init__(self, file: BinaryIO, part: Part):
        super().__init__()
        self._file, self._part = file, part
        self._size = len(part.head) + part.stop - part.start
        self._at = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to an offset from the start, the current position or the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        """Reads up to `len(buffer)` bytes into `buffer`; returns the number of bytes."""
        view, head = memoryview(buffer).cast("B"), self._part.head
        done = 0
        if self._at < len(head):
            done = min(len(view), len(head) - self._at)
            view[:done] = head[self._at : self._at + done]
        rest = min(len(view), self._size - self._at) - done
        if rest > 0:
            self._file.seek(self._part.start + self._at + done - len(head))
            done += self._file.readinto(view[done : done + rest])  # type: ignore[attr-defined]
        self._at += done
        return done


def read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """Returns `length` bytes at an offset, or fewer at the end of the file."""
    file.seek(offset)
    return file.read(length)


def missing(count: int) -> SoundError:
    """Returns the error for a file that lacks its last `count` bytes."""
    return SoundError("truncated", f"the last {count} bytes of the file are missing")


def without_tags(file: BinaryIO, size: int) -> int:
    """Returns the size of the file without the ID3v1, APE and Lyrics3 tags at its end."""
    while True:
        tail = read_at(file, max(0, size - 128), min(size, 128))
        length = 0
        if tail.startswith(b"TAG") and len(tail) == 128:
            length = 128
        elif tail[-32:-24] == b"APETAGEX":
            has_header = tail[-9] & 0x80  # bit 31 of the flags
            length = int.from_bytes(tail[-20:-16], "little") + (32 if has_header else 0)
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            length = int(tail[-15:-9]) + 15
        elif read_at(file, max(0, size - 227), 4) == b"TAG+":
            length = 227
        if not 0 < length <= size:
            return size
        size -= length


def after_id3(file: BinaryIO, start: int) -> int:
    """Returns the offset after the ID3v2 tags that start at `start`."""
    while (head := read_at(file, start, 10))[:3] == b"ID3" and len(head) == 10:
        length = 0
        for byte in head[6:]:
            length = length << 7 | byte & 0x7F
        start += 10 + length + (10 if head[5] & 0x10 else 0)  # the footer has 10 bytes
    return start
