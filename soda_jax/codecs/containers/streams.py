"""Parses FLAC and Ogg.

FLAC: the parser compares the length in STREAMINFO with the last frame. An encoder that writes
to a pipe leaves 0 as the length. libFLAC reports no error if such a file is truncated, or if a file
contains more samples than the length in STREAMINFO.

Ogg: files joined with `cat` and recordings of radio streams contain several consecutive streams.
libsndfile 1.2 decodes only the first and reports no error.
"""

import itertools
import re
from collections.abc import Iterator
from typing import BinaryIO

from soda_jax.codecs.containers.common import Part, SoundError, read_at, without_tags

# A stream starts with "fLaC" and a STREAMINFO block of 34 bytes. `re` is faster here than
# `bytes.find`.
_STREAM = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_BLOCK = 1 << 20  # bytes searched at once
_TAIL = 1 << 15  # bytes at the end of a stream, searched for the header of the last frame
_LONGEST = 1 << 20  # bytes; longer than a frame with 4,096 samples, 8 channels and 32 bits
_COUNT = (1 << 36) - 1  # the field with the number of samples has 36 bits
_PAGE = b"OggS"
_FIRST = 2  # flag of the first page of an Ogg stream


def flac(file: BinaryIO, start: int, size: int) -> tuple[list[Part], int]:
    """Returns ([part], offset after the stream) for the FLAC stream at `start`.

    Args:
      file: the sound file.
      start: offset of the stream.
      size: size of the file in bytes.

    Raises:
      SoundError: `truncated` if the last frame is incomplete or frames are missing.
    """
    head = read_at(file, start, 42)
    if len(head) < 42:
        raise SoundError("truncated", "the file ends within its header")
    declared = int.from_bytes(head[18:26], "big") & _COUNT
    blocks = int.from_bytes(head[10:12], "big")  # longest block in samples
    stop = _next_stream(file, start + 42, size)
    # Fast path: the last frame header of the stream agrees with the length in STREAMINFO.
    tail = read_at(file, max(start + 42, stop - _TAIL), min(_TAIL, stop - start - 42))
    if declared and next(_headers(tail, blocks), (0, 0))[1] == declared:
        return [Part(start, stop)], stop
    end = without_tags(file, stop)
    samples = _complete_frames(file, start + 42, end, blocks)
    if samples is None:
        raise SoundError("truncated", "the file ends in the middle of a FLAC frame")
    if samples < declared:
        raise SoundError("truncated", f"it ends after {samples} of {declared} samples")
    if samples == declared:
        return [Part(start, stop)], stop
    length = int.from_bytes(head[18:26], "big") & ~_COUNT | samples
    return [Part(start + 26, end, head[:18] + length.to_bytes(8, "big"))], stop


def ogg(file: BinaryIO, start: int, size: int) -> list[Part]:
    """Returns the chained streams from `start` to the end of a file of `size` bytes.

    The last page need not have an end-of-stream flag, because recordings of live streams have none.

    Raises:
      SoundError: `truncated` if the last page is incomplete, `undecodable` if there are other bytes
        between two pages.
    """
    links: list[int] = []
    at, beginning = start, False
    while at < size:
        header = read_at(file, at, 27 + 255)
        if header[:4] != _PAGE:
            if (after := _next_page(file, at, size)) < 0:
                break  # a tag at the end
            raise SoundError(
                "undecodable",
                f"{after - at} bytes at offset {at} are not an Ogg page: the file is damaged",
            )
        # Byte 26 is the number of segments; the length of each follows, then the segments.
        length = 27 + header[26] + sum(header[27 : 27 + header[26]]) if len(header) > 26 else 0
        if len(header) < 27 or at + length > size:
            raise SoundError("truncated", "the file ends in the middle of an Ogg page")
        first = bool(header[5] & _FIRST)
        if first and not beginning:  # multiplexed streams begin together
            links.append(at)
        at, beginning = at + length, first
    return [Part(a, b) for a, b in zip(links, [*links[1:], size], strict=True)]


def _next_page(file: BinaryIO, at: int, size: int) -> int:
    """Returns the offset of the next Ogg page; -1 if there is none."""
    while at < size:
        content = read_at(file, at, (1 << 16) + 3)
        if (found := content.find(_PAGE)) >= 0:
            return at + found
        at += 1 << 16
    return -1


def _next_stream(file: BinaryIO, at: int, size: int) -> int:
    """Returns the offset of the next FLAC stream; `size` if there is none."""
    while at < size:
        content = read_at(file, at, min(_BLOCK + 8, size - at))
        if found := _STREAM.search(content):
            return at + found.start()
        at += _BLOCK
    return size


def _complete_frames(file: BinaryIO, first: int, stop: int, blocks: int) -> int | None:
    """Returns the number of samples up to `stop`; None if no frame ends at `stop`."""
    tail = read_at(file, max(first, stop - _LONGEST), min(_LONGEST, stop - first))
    # Bytes within a frame may look like a header, so the checksum of the frame is compared.
    for at, samples in itertools.islice(_headers(tail, blocks), 4):
        if _crc(tail[at:-2], _CRC16, 16) == int.from_bytes(tail[-2:], "big"):
            return samples
    return None


def _headers(tail: bytes, blocks: int) -> Iterator[tuple[int, int]]:
    """Yields (offset, samples up to the end of the frame) for each frame header, in reverse."""
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        if (end := _frame_end(tail[at : at + 16], blocks)) is not None:
            yield at, end


def _frame_end(header: bytes, blocks: int) -> int | None:
    """Returns the number of samples up to the end of a frame (RFC 9639, section 9.1).

    Returns None if `header` does not start with a valid frame header.
    """
    if len(header) < 6 or header[1] & 0xFE != 0xF8 or header[3] & 1:
        return None
    code, rate = header[2] >> 4, header[2] & 15
    if code == 0 or rate == 15 or header[3] >> 4 > 10:
        return None
    lead = header[4]
    extra = 0 if lead < 0x80 else (8 - (lead ^ 0xFF).bit_length()) - 1
    if lead >= 0x80 and not 1 <= extra <= 6:
        return None
    number = lead if not extra else lead & (0x3F >> extra)
    for byte in header[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    at = 5 + extra
    if code in (6, 7):
        block = int.from_bytes(header[at : at + code - 5], "big") + 1
        at += code - 5
    else:
        block = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if at >= len(header) or _crc(header[:at], _CRC8, 8) != header[at]:
        return None
    # If all blocks have the same size, `number` counts frames, otherwise samples.
    return number * (1 if header[1] & 1 else blocks) + block


def _table(polynomial: int, bits: int) -> list[int]:
    values = []
    for value in range(256):
        value <<= bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> bits - 1 else 0)
        values.append(value & (1 << bits) - 1)
    return values


_CRC8, _CRC16 = _table(0x107, 8), _table(0x18005, 16)


def _crc(content: bytes, table: list[int], bits: int) -> int:
    crc, mask, shift = 0, (1 << bits) - 1, bits - 8
    for byte in content:
        crc = (crc << 8 & mask) ^ table[crc >> shift ^ byte]
    return crc
