"""Uncompressed and chunked containers: WAV, RF64, W64, AIFF, 8SVX, CAF, AU and NIST SPHERE.

Each of them states the number of its sample bytes in a header. A writer to a pipe cannot go back to
fill it in and leaves 0 or a huge number; then the samples reach to the end of the file. libsndfile
returns what is there of a truncated file, and nothing where the size is 0, without an error.
"""

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal

from soda_jax.codecs.containers.common import ContainerError, Part, missing, read_at
from soda_jax.codecs.containers.mpeg import mpeg

_UNKNOWN_32 = 0x7FFF_0000  # writers to a pipe leave a size near 2^31 or 2^32
_UNKNOWN_64 = 1 << 62
_MPEG = (0x50, 0x55)  # WAV codings that keep MPEG frames: layer I or II, layer III
_SLACK = 4096  # bytes between two sizes of a header that count as the same: tags, padding

Order = Literal["big", "little"]
Found = tuple[list[Part], int]  # the parts of one file, and the offset after it


def wav(file: BinaryIO, start: int, size: int) -> Found:
    """The part of a WAV (little- or big-endian), RF64 or BW64 at `start` of a file of `size` bytes.

    Raises:
      ContainerError: `truncated` or `undecodable`.
    """
    head = read_at(file, start, 12)
    order: Order = "big" if head[:4] == b"RIFX" else "little"
    wide = head[:4] in (b"RF64", b"BW64")
    end = start + 8 + int.from_bytes(head[4:8], order)
    sizes = None  # of ds64: where its numbers are
    data, coding = None, 0
    for identifier, first, length in _chunks(file, start + 12, size, order):
        if identifier == b"fmt ":
            coding = int.from_bytes(read_at(file, first, 2), order)
        if wide and identifier == b"ds64":
            sizes = first
            end = start + 8 + int.from_bytes(read_at(file, first, 8), "little")
        if identifier == b"data":
            data = first, length
            break
    if data is None:
        return _without_samples(start, end, size)
    first, declared = data
    if sizes is not None and declared == 0xFFFF_FFFF:
        declared = int.from_bytes(read_at(file, sizes + 8, 8), "little")
        unknown = _UNKNOWN_64
    else:
        unknown = _UNKNOWN_32

    def next_chunk(after: int) -> int | None:
        return _end_of_chunks(file, after, size, order)

    stop, after = _samples_end(first, declared, unknown, size, end, next_chunk)
    if coding in _MPEG and (parts := mpeg(file, first, stop)):
        return parts, after
    if declared == stop - first or (sizes is None and declared >= unknown):
        return [Part(start, after)], after
    header = bytearray(read_at(file, start, first - start))
    if sizes is not None:
        at = sizes - start
        header[at : at + 8] = (stop - start - 8).to_bytes(8, "little")
        header[at + 8 : at + 16] = (stop - first).to_bytes(8, "little")
    else:
        header[-4:] = min(stop - first, 0xFFFF_FFFF).to_bytes(4, order)
    return [Part(first, stop, bytes(header))], after


def aiff(file: BinaryIO, start: int, size: int) -> Found:
    """The part of an AIFF, AIFF-C or 8SVX at `start`; as `wav`."""
    head = read_at(file, start, 12)
    end = start + 8 + int.from_bytes(head[4:8], "big")
    name, lead = (b"BODY", 0) if head[8:12] in (b"8SVX", b"16SV") else (b"SSND", 8)
    chunks = _chunks(file, start + 12, size, "big")
    found = next(((first, length) for kind, first, length in chunks if kind == name), None)
    if found is None:
        return _without_samples(start, end, size)
    first, declared = found[0] + lead, max(found[1] - lead, 0)

    def next_chunk(after: int) -> int | None:
        return _end_of_chunks(file, after, size, "big")

    stop, after = _samples_end(first, declared, _UNKNOWN_32, size, end, next_chunk)
    if name == b"BODY":  # libsndfile 1.2 decodes everything that follows the header
        return [Part(start, stop)], after
    if declared == stop - first or declared >= _UNKNOWN_32:
        return [Part(start, after)], after
    header = bytearray(read_at(file, start, first - start))
    header[4:8] = min(stop - start - 8, 0xFFFF_FFFF).to_bytes(4, "big")
    at = len(header) - lead - 4
    header[at : at + 4] = min(stop - first + lead, 0xFFFF_FFFF).to_bytes(4, "big")
    return [Part(first, stop, bytes(header))], after


def w64(file: BinaryIO, start: int, size: int) -> Found:
    """The part of a Sony Wave64 at `start`; as `wav`.

    libsndfile 1.2 decodes everything that follows the header, so the part ends with its samples.
    """
    end = start + int.from_bytes(read_at(file, start + 16, 8), "little")
    at = start + 40
    while True:
        header = read_at(file, at, 24)
        if len(header) < 24:
            return _without_samples(start, end, size)
        length = int.from_bytes(header[16:24], "little")  # the header included
        if header[:4] == b"data":
            break
        at += max(24, -(-length // 8) * 8)
    first, declared = at + 24, max(length - 24, 0)

    def next_chunk(after: int) -> int | None:
        at = begin = min(start + -(-(after - start) // 8) * 8, size)
        while (header := read_at(file, at, 24))[:4] != b"riff" and len(header) == 24:
            length = int.from_bytes(header[16:], "little")
            if not 24 <= length <= size - at:
                break
            at = min(at + -(-length // 8) * 8, size)
        return at if at > begin or at == size or header[:4] == b"riff" else None

    stop, after = _samples_end(first, declared, _UNKNOWN_64, size, end, next_chunk)
    if declared == stop - first and end <= size:
        return [Part(start, stop)], after
    header = read_at(file, start, first - start)
    sizes = [(number).to_bytes(8, "little") for number in (stop - start, stop - first + 24)]
    return [Part(first, stop, header[:16] + sizes[0] + header[24:-8] + sizes[1])], after


def caf(file: BinaryIO, start: int, size: int) -> Found:
    """The part of an Apple CAF at `start`; as `wav`. A size of −1 means: to the end of the file."""
    at = start + 8
    data = None
    while len(header := read_at(file, at, 12)) == 12 and header[:4] != b"caff":
        length = int.from_bytes(header[4:], "big", signed=True)
        if header[:4] == b"data":
            data = at + 12, length
            if length <= 0:
                at = size
                break
            if at + 12 + length > size:
                raise missing(at + 12 + length - size)
        elif not 0 <= length <= size - at - 12:
            break
        at += 12 + length
    if data is None:
        return _without_samples(start, at, size)
    first, declared = data
    if declared > 0:
        return [Part(start, at)], at
    header = read_at(file, start, first - start)
    return [Part(first, size, header[:-8] + (size - first).to_bytes(8, "big"))], size


def au(file: BinaryIO, start: int, size: int) -> Found:
    """The part of a Sun AU at `start`; as `wav`. A size of 2^32 − 1 means: to the end of the file."""
    head = read_at(file, start, 24)
    order: Order = "big" if head[:4] == b".snd" else "little"
    first = start + int.from_bytes(head[4:8], order)
    declared = int.from_bytes(head[8:12], order)
    stop, after = _samples_end(first, declared, _UNKNOWN_32, size, 0, lambda after: None)
    if declared == stop - first or declared >= _UNKNOWN_32:
        return [Part(start, after)], after
    header = bytearray(read_at(file, start, first - start))
    header[8:12] = b"\xff" * 4
    return [Part(first, stop, bytes(header))], after


def nist(file: BinaryIO, start: int, size: int) -> Found:
    """The part of a NIST SPHERE file at `start`, whose header is text; as `wav`."""
    lines = read_at(file, start, 1024)
    length = re.match(rb"NIST_1A\s+(\d+)", lines)
    fields = dict(re.findall(rb"(\w+) -(?:i|s\d+) (\d+)\n", lines))
    count, width = fields.get(b"sample_count"), fields.get(b"sample_n_bytes")
    if length is None or count is None or width is None or b"embedded-" in lines:
        return [Part(start, size)], size  # without a length, or compressed: libsndfile decides
    first = start + int(length[1])
    declared = int(count) * int(width) * int(fields.get(b"channel_count", 1))
    stop, after = _samples_end(first, declared, _UNKNOWN_64, size, 0, lambda after: None)
    return [Part(start, stop)], after


def _samples_end(
    first: int,
    declared: int,
    unknown: int,
    size: int,
    end: int,
    next_chunk: Callable[[int], int | None],
) -> tuple[int, int]:
    """(offset after the last sample byte, offset after the whole part).

    Args:
      first: offset of the first sample byte.
      declared: number of sample bytes by the header.
      unknown: from this number on, a size that the file does not have means that it was not known.
      size: of the file.
      end: where the part ends by its outermost size.
      next_chunk: of an offset, the end of the chunks that start there; None if none does.
    """
    available = size - first
    if available < 0:
        raise missing(-available)
    if declared > available:
        if declared >= unknown:
            return size, size
        # One byte may be the padding of an odd chunk, which some writers count and do not write.
        if declared > available + 1:
            raise missing(declared - available)
        return size, size
    after = next_chunk(first + declared)
    if after is not None:
        return first + declared, after
    left = available - declared
    # The size of the samples was not written, or the outer size covers more than they do.
    if left and (declared == 0 or (end > first + declared + _SLACK and left > _SLACK)):
        return size, size
    return first + declared, first + declared


def _chunks(file: BinaryIO, at: int, size: int, order: Order) -> Iterator[tuple[bytes, int, int]]:
    """Yields (identifier, offset of the content, length) of chunks with a 4-byte size."""
    while at + 8 <= size:
        header = read_at(file, at, 8)
        length = int.from_bytes(header[4:], order)
        yield header[:4], at + 8, length
        at += 8 + length + (length & 1)


def _end_of_chunks(file: BinaryIO, at: int, size: int, order: Order) -> int | None:
    """The offset after the chunks that start at an offset; None if there are bytes and no chunks."""
    for odd in (at & 1, 0):  # some writers do not pad a chunk of odd length
        end = min(at + odd, size)
        for identifier, first, length in _chunks(file, end, size, order):
            whole = first + length <= size + 1
            if identifier in _FILES or not (whole and identifier.isascii() and identifier.strip()):
                break
            if not all(32 <= byte < 127 for byte in identifier):
                break
            end = min(first + length + (length & 1), size)
        if end > at + odd or end == size or read_at(file, end, 4) in _FILES:
            return end
    return None


_FILES = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM")


def _without_samples(start: int, end: int, size: int) -> Found:
    """A container without a chunk of samples: cut before it, or for libsndfile to judge."""
    if end > size:
        raise missing(end - size)
    raise ContainerError("undecodable", "its header is followed by no samples")
