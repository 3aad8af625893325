"""Parses uncompressed and chunked containers: WAV, RF64, W64, AIFF, 8SVX, CAF, AU and NIST SPHERE.

Their headers contain the number of sample bytes. A program that writes to a pipe cannot fill in
this number at the end and leaves 0 or a huge number; then the samples extend to the end of the
file. libsndfile reports no error if a file is truncated or if the number is 0; it decodes the
available part of a truncated file, and nothing if the number is 0.

For the header at offset `start` in a file of `size` bytes, each parser returns the parts of one
sound file and the offset after this sound file. A parser raises `SoundError` (`truncated` or
`undecodable`).
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, Literal

from soda_jax.codecs.containers.common import Part, SoundError, missing, read_at
from soda_jax.codecs.containers.mpeg import mpeg

_UNKNOWN_32 = 0x7FFF_0000  # programs that write to a pipe leave a size near 2^31 or 2^32
_UNKNOWN_64 = 1 << 62
_MPEG = (0x50, 0x55)  # WAV format tags of MPEG audio: layer I or II, layer III
_FILES = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM")  # first bytes of files that have chunks
_SLACK = 4096  # bytes of tags or padding that may follow the samples

Order = Literal["big", "little"]
Parsed = tuple[list[Part], int]
Chunk = tuple[bytes, int, int]  # identifier, offset of the content, length in bytes


def wav(file: BinaryIO, start: int, size: int) -> Parsed:
    """Parses a WAV (little- or big-endian), RF64 or BW64 file."""
    head = read_at(file, start, 12)
    order: Order = "big" if head[:4] == b"RIFX" else "little"
    wide = head[:4] in (b"RF64", b"BW64")
    end = start + 8 + int.from_bytes(head[4:8], order)
    found = _up_to(b"data", _chunks(file, start + 12, size, order))
    sizes, unknown = None, _UNKNOWN_32
    if wide and b"ds64" in found:
        sizes = found[b"ds64"][0]
        end = start + 8 + int.from_bytes(read_at(file, sizes, 8), "little")
    if b"data" not in found:
        raise _no_samples(end, size)
    first, declared = found[b"data"]
    if sizes is not None and declared == 0xFFFF_FFFF:
        declared = int.from_bytes(read_at(file, sizes + 8, 8), "little")
        unknown = _UNKNOWN_64
    following = partial(_end_of_chunks, file, size, order)
    stop, after = _samples_end(first, declared, unknown, size, end, following)
    coding = read_at(file, found[b"fmt "][0], 2) if b"fmt " in found else b""
    if int.from_bytes(coding, order) in _MPEG and (parts := mpeg(file, first, stop)):
        return parts, after
    if declared == stop - first or (sizes is None and declared >= unknown):
        return [Part(start, after)], after
    if sizes is None:
        field = (first - 4, _size_32(stop - first, order))
    else:
        both = (stop - start - 8).to_bytes(8, "little") + (stop - first).to_bytes(8, "little")
        field = (sizes, both)
    return [_corrected(file, start, first, stop, field)], after


def aiff(file: BinaryIO, start: int, size: int) -> Parsed:
    """Parses an AIFF, AIFF-C or 8SVX file."""
    head = read_at(file, start, 12)
    end = start + 8 + int.from_bytes(head[4:8], "big")
    name, lead = (b"BODY", 0) if head[8:12] in (b"8SVX", b"16SV") else (b"SSND", 8)
    found = _up_to(name, _chunks(file, start + 12, size, "big"))
    if name not in found:
        raise _no_samples(end, size)
    content, length = found[name]
    first, declared = content + lead, max(length - lead, 0)
    following = partial(_end_of_chunks, file, size, "big")
    stop, after = _samples_end(first, declared, _UNKNOWN_32, size, end, following)
    if name == b"BODY":  # libsndfile 1.2 decodes everything after the header
        return [Part(start, stop)], after
    if declared == stop - first or declared >= _UNKNOWN_32:
        return [Part(start, after)], after
    form = (start + 4, _size_32(stop - start - 8, "big"))
    samples = (content - 4, _size_32(stop - content, "big"))
    return [_corrected(file, start, first, stop, form, samples)], after


def w64(file: BinaryIO, start: int, size: int) -> Parsed:
    """Parses a Sony Wave64 file.

    libsndfile 1.2 decodes everything after the header, so the part ends at the last sample.
    """
    end = start + int.from_bytes(read_at(file, start + 16, 8), "little")
    found = _up_to(b"data", _w64_chunks(file, start + 40))
    if b"data" not in found:
        raise _no_samples(end, size)
    first, declared = found[b"data"][0], max(found[b"data"][1], 0)

    def following(after: int) -> int | None:
        stop = begin = min(start + -(-(after - start) // 8) * 8, size)
        for identifier, content, length in _w64_chunks(file, begin):
            if identifier == b"riff" or not 0 <= length <= size - content:
                break
            stop = min(content + -(-length // 8) * 8, size)
        return stop if stop > begin or stop == size or read_at(file, stop, 4) == b"riff" else None

    stop, after = _samples_end(first, declared, _UNKNOWN_64, size, end, following)
    if declared == stop - first and end <= size:
        return [Part(start, stop)], after
    riff = (start + 16, (stop - start).to_bytes(8, "little"))
    data = (first - 8, (stop - first + 24).to_bytes(8, "little"))
    return [_corrected(file, start, first, stop, riff, data)], after


def caf(file: BinaryIO, start: int, size: int) -> Parsed:
    """Parses an Apple CAF file.

    If the size of the data chunk is −1 or 0, the samples extend to the end of the file.
    """
    at, found = start + 8, False
    while len(header := read_at(file, at, 12)) == 12 and header[:4] != b"caff":
        length = int.from_bytes(header[4:], "big", signed=True)
        first = at + 12
        if header[:4] == b"data":
            found = True
            if length <= 0:
                field = (at + 4, (size - first).to_bytes(8, "big"))
                return [_corrected(file, start, first, size, field)], size
            if first + length > size:
                raise missing(first + length - size)
        elif not 0 <= length <= size - first:
            break
        at = first + length
    if not found:
        raise _no_samples(at, size)
    return [Part(start, at)], at


def au(file: BinaryIO, start: int, size: int) -> Parsed:
    """Parses a Sun AU file.

    If the number of sample bytes is 2^32 − 1 or 0, the samples extend to the end of the file.
    """
    head = read_at(file, start, 12)
    order: Order = "big" if head[:4] == b".snd" else "little"
    first = start + int.from_bytes(head[4:8], order)
    declared = int.from_bytes(head[8:12], order)
    stop, after = _samples_end(first, declared, _UNKNOWN_32, size)
    if declared == stop - first or declared >= _UNKNOWN_32:
        return [Part(start, after)], after
    return [_corrected(file, start, first, stop, (start + 8, b"\xff" * 4))], after


def nist(file: BinaryIO, start: int, size: int) -> Parsed:
    """Parses a NIST SPHERE file, whose header is text."""
    lines = read_at(file, start, 1024)
    length = re.match(rb"NIST_1A\s+(\d+)", lines)
    fields = dict(re.findall(rb"(\w+) -(?:i|s\d+) (\d+)\n", lines))
    count, width = fields.get(b"sample_count"), fields.get(b"sample_n_bytes")
    if length is None or count is None or width is None or b"embedded-" in lines:
        return [Part(start, size)], size  # unknown length or compressed samples; not checked
    declared = int(count) * int(width) * int(fields.get(b"channel_count", 1))
    stop, after = _samples_end(start + int(length[1]), declared, _UNKNOWN_64, size)
    return [Part(start, stop)], after


def _samples_end(
    first: int,
    declared: int,
    unknown: int,
    size: int,
    end: int = 0,
    following: Callable[[int], int | None] = lambda after: None,
) -> tuple[int, int]:
    """Returns (offset after the last sample byte, offset after the sound file).

    Args:
      first: offset of the first sample byte.
      declared: number of sample bytes according to the header.
      unknown: `declared` is a placeholder if it is at least `unknown` and exceeds the bytes left.
      size: size of the file in bytes.
      end: offset of the end according to the outermost size in the header.
      following: returns the offset after the chunks at an offset, or None if other bytes follow.
    """
    available = size - first
    if available < 0:
        raise missing(-available)
    if declared > available:
        # Some writers count a padding byte after an odd number of bytes and do not write it.
        if available + 1 < declared < unknown:
            raise missing(declared - available)
        return size, size
    after = following(first + declared)
    if after is not None:
        return first + declared, after
    left = available - declared
    # The number of sample bytes was not filled in, or the outer size covers more bytes.
    if left and (declared == 0 or (end > first + declared + _SLACK and left > _SLACK)):
        return size, size
    return first + declared, first + declared


def _chunks(file: BinaryIO, at: int, size: int, order: Order) -> Iterator[Chunk]:
    """Yields the chunks from offset `at`, which have 4-byte sizes."""
    while at + 8 <= size:
        header = read_at(file, at, 8)
        length = int.from_bytes(header[4:], order)
        yield header[:4], at + 8, length
        at += 8 + length + (length & 1)


def _w64_chunks(file: BinaryIO, at: int) -> Iterator[Chunk]:
    """Yields the chunks of a Wave64 file from offset `at`, with the first 4 bytes of each ID."""
    while len(header := read_at(file, at, 24)) == 24:
        length = int.from_bytes(header[16:], "little")  # includes the header
        yield header[:4], at + 24, length - 24
        at += max(24, -(-length // 8) * 8)


def _up_to(name: bytes, chunks: Iterator[Chunk]) -> dict[bytes, tuple[int, int]]:
    """Returns identifier -> (content offset, length) of the chunks up to the first `name`."""
    found = {}
    for identifier, first, length in chunks:
        found[identifier] = first, length
        if identifier == name:
            break
    return found


def _end_of_chunks(file: BinaryIO, size: int, order: Order, at: int) -> int | None:
    """Returns the offset after the chunks that start at `at`; None if other bytes follow."""
    for odd in (at & 1, 0):  # some writers do not pad a chunk of odd length
        end = min(at + odd, size)
        for identifier, first, length in _chunks(file, end, size, order):
            printable = all(32 <= byte < 127 for byte in identifier) and identifier.strip()
            if identifier in _FILES or first + length > size + 1 or not printable:
                break
            end = min(first + length + (length & 1), size)
        if end > at + odd or end == size or read_at(file, end, 4) in _FILES:
            return end
    return None


def _corrected(
    file: BinaryIO, start: int, first: int, stop: int, *fields: tuple[int, bytes]
) -> Part:
    """Returns a part with the samples in `[first, stop)` and a corrected copy of the header.

    Args:
      file: the sound file.
      start: offset of the header, which ends at `first`.
      first: offset of the first sample byte.
      stop: offset after the last sample byte.
      fields: (offset in the file, bytes) of each header field to replace in the copy.
    """
    header = bytearray(read_at(file, start, first - start))
    for offset, value in fields:
        header[offset - start : offset - start + len(value)] = value
    return Part(first, stop, bytes(header))


def _size_32(count: int, order: Order) -> bytes:
    return min(count, 0xFFFF_FFFF).to_bytes(4, order)


def _no_samples(end: int, size: int) -> SoundError:
    """Returns the error for a sound file without samples that should end at `end`."""
    if end > size:
        return missing(end - size)
    return SoundError("undecodable", "its header is not followed by samples")
