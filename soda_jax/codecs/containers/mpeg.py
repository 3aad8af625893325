"""Counts the frames of MPEG audio (MP3), because no header field contains the length reliably.

Without a Xing, Info or VBRI header, libsndfile estimates the length from the sizes of the file and
of its first frames, and stops decoding at this length. Otherwise, libsndfile trusts the header,
even if a second file was appended. This module counts the frames by parsing their headers (ISO
11172-3, 2.4.1.3; ISO 13818-3), splits the file at each Xing, Info or VBRI header and at each change
of format, and adds a correct header to each stream whose header is missing or wrong (layer III; for
the other layers, it returns the number of samples).
"""

from dataclasses import dataclass
from typing import BinaryIO

from soda_jax.codecs.containers.common import (
    Part,
    SoundError,
    after_id3,
    read_at,
    without_tags,
)

_BITRATES = {  # kbit/s for the indices 1 to 14, by (MPEG 1, layer); 0 is free format, 15 is invalid
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_BLOCK = 1 << 22  # bytes read at once
_LONGEST_FRAME = 4096  # bytes; an upper bound
_LONGEST_LEAD = 1 << 16  # bytes before the first frame; a recording may start within a frame
_PADDING = 4096  # zero bytes that are allowed after the last frame
_DECODER_DELAY = 529  # samples that a decoder removes if a header contains an encoder delay


@dataclass(frozen=True)
class _Header:
    """A parsed frame header (four bytes).

    Attributes:
      length: length of the frame in bytes.
      samples: samples per channel.
      stream: (version, layer, rate in Hz, mono), equal in all frames of a stream.
      tag: offset of a Xing or Info header in the frame.
    """

    length: int
    samples: int
    stream: tuple[int, int, int, bool]
    tag: int


_headers: dict[bytes, _Header | None] = {}  # cache of `_parse`; a file has few different headers


def _parse(head: bytes) -> _Header | None:
    """Parses a frame header and caches the result; returns None if `head` is not a header."""
    result = None
    if len(head) == 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
        bitrate, rate, mono = head[2] >> 4, head[2] >> 2 & 3, head[3] >> 6 == 3
        if version != 1 and layer != 4 and 0 < bitrate < 15 and rate != 3 and head[3] & 3 != 2:
            first = version == 3
            samples = 384 if layer == 1 else 1152 if layer == 2 or first else 576
            hertz = _RATES[version][rate]
            slot = 4 if layer == 1 else 1
            bits = _BITRATES[first, layer][bitrate - 1] * 1000
            length = (samples // 8 // slot * bits // hertz + (head[2] >> 1 & 1)) * slot
            side = (17 if mono else 32) if first else (9 if mono else 17)
            result = _Header(length, samples, (version, layer, hertz, mono), 4 + side)
    _headers[bytes(head)] = result
    return result


@dataclass
class _Stream:
    """Consecutive frames of one format.

    Attributes:
      start: offset of the first frame.
      stop: offset after the last frame.
      head: first frame header, four bytes.
      header: the parsed `head`.
      frames: number of frames, not counting `tag`.
      tag: the first frame if it contains a Xing, Info or VBRI header.
    """

    start: int
    stop: int
    head: bytes
    header: _Header
    frames: int = 0
    tag: bytes | None = None


def mpeg(file: BinaryIO, start: int, size: int) -> list[Part]:
    """Returns the streams from `start` to the end of a file of `size` bytes.

    The list is empty if no frames begin near `start`; free format, for example, is not recognized.

    Raises:
      SoundError: `truncated` if the last frame is incomplete or a header declares more frames;
        `undecodable` if there are other bytes between frames.
    """
    end = without_tags(file, size)
    lead = min(_LONGEST_LEAD + 3 * _LONGEST_FRAME, end - start)
    first = _next_frame(read_at(file, start, lead), 3)
    if first is None or first > _LONGEST_LEAD:
        return []
    streams = _walk(file, start + first, end)
    return [_part(stream) for stream in streams]


def _walk(file: BinaryIO, at: int, end: int) -> list[_Stream]:
    """Returns the streams from offset `at` to `end`."""
    streams: list[_Stream] = []
    while at < end:
        block = read_at(file, at, min(_BLOCK, end - at))
        # Frames near the end of the block are processed with the next block.
        last = len(block) - (_LONGEST_FRAME if at + len(block) < end else 0)
        base, at = at, at + _count(block, at, last, streams)
        if at < base + last:
            at = _between(file, at, end, streams[-1])
    return streams


def _count(block: bytes, base: int, last: int, streams: list[_Stream]) -> int:
    """Adds the frames that start in `block[:last]` to `streams`, and counts them.

    Args:
      block: bytes of the file.
      base: offset of `block` in the file.
      last: offset in `block` at which to stop.
      streams: the streams so far; changed in place.

    Returns:
      The offset in `block` after the last added frame.
    """
    at, size = 0, len(block)
    known, stream = _headers, streams[-1] if streams else None
    while at < last:
        head = block[at : at + 4]
        header = known[head] if head in known else _parse(head)
        if header is None or at + header.length > size:
            break
        mark = block[at + header.tag : at + header.tag + 4]
        tag = mark in (b"Xing", b"Info") or block[at + 36 : at + 40] == b"VBRI"
        if tag or stream is None or header.stream != stream.header.stream:
            stream = _Stream(base + at, 0, head, header)
            streams.append(stream)
            if tag:
                stream.tag = block[at : at + header.length]
                stream.frames = -1
        stream.frames += 1
        at += header.length
        stream.stop = base + at
    return at


def _between(file: BinaryIO, at: int, end: int, stream: _Stream) -> int:
    """Returns the offset after the tag at `at`; `end` if the bytes before `end` can be ignored.

    Raises:
      SoundError: see `mpeg`.
    """
    content = read_at(file, at, min(_BLOCK, end - at))
    header = _parse(content[:4])
    complete = stream.tag is not None and _counts(stream)[0] == stream.frames
    same = header is not None and header.stream == stream.header.stream
    if (same or (len(content) < 4 and content[:1] == b"\xff")) and not complete:
        raise SoundError("truncated", "the file ends in the middle of an MPEG frame")
    if content[:3] == b"ID3":
        return after_id3(file, at)
    if content[:3] == b"TAG":
        return at + 128
    if content[:8] == b"APETAGEX":
        return at + 32 + int.from_bytes(content[12:16], "little")
    found = _next_frame(content, 2)
    if found is not None:
        raise SoundError(
            "undecodable", f"{found} bytes at offset {at} are not MPEG frames: the file is damaged"
        )
    if complete or (end - at <= _PADDING and not content[: end - at].strip(b"\0")):
        return end
    raise SoundError("undecodable", f"{end - at} bytes at its end are not MPEG frames")


def _next_frame(content: bytes, frames: int) -> int | None:
    """Returns the offset of the next `frames` consecutive frames of one stream, or None."""
    at = -1
    while (at := content.find(b"\xff", at + 1)) >= 0:
        following, stream = at, None
        for _ in range(frames):
            header = _parse(content[following : following + 4])
            if header is None or (stream and header.stream != stream):
                break
            following, stream = following + header.length, header.stream
            if following == len(content):
                return at
        else:
            return at
    return None


def _counts(stream: _Stream) -> tuple[int | None, int | None]:
    """Returns (frames, bytes) from the header of the stream; None for a missing number."""
    content = stream.tag
    if content is None:
        return None, None
    if content[36:40] == b"VBRI":
        return int.from_bytes(content[50:54], "big"), int.from_bytes(content[46:50], "big")
    at = stream.header.tag + 8
    flags = content[at - 1]
    length_at = at + 4 * (flags & 1)
    frames = int.from_bytes(content[at : at + 4], "big") if flags & 1 else None
    length = int.from_bytes(content[length_at : length_at + 4], "big") if flags & 2 else None
    return frames, length


def _part(stream: _Stream) -> Part:
    """Returns the part of a stream, with a new header if its own is missing or wrong."""
    frames, length = _counts(stream)
    if frames == stream.frames:
        return Part(stream.start, stream.stop)
    # Some encoders also count the frame that contains the header. If the number of frames is too
    # large but the number of bytes is correct, the header is wrong and the file is complete.
    more = not frames or frames > stream.frames + 1
    longer = (length or 0) > stream.stop - stream.start + stream.header.length
    if more and (longer or (frames and not length)):
        promised = f"{frames} MPEG frames" if frames else f"{length} bytes"
        raise SoundError(
            "truncated", f"it ends after {stream.frames} MPEG frames; its header states {promised}"
        )
    start = stream.start + (len(stream.tag) if stream.tag else 0)
    if stream.header.stream[1] != 3:  # libsndfile reads a Xing header in layer III only
        return Part(start, stream.stop, samples=stream.frames * stream.header.samples)
    return Part(start, stream.stop, _xing(stream))


def _xing(stream: _Stream) -> bytes:
    """Returns two frames to put before a stream: a Xing header with the frame count, and silence.

    If a stream has such a header, a decoder removes the encoder delay given in the header and the
    decoder delay of 529 samples. The encoder delay is chosen so that their sum is one frame.
    """
    header = stream.header
    tag, silence = (_empty_frame(stream, length) for length in (header.tag + 12 + 36, header.tag))
    delay = header.samples - _DECODER_DELAY
    content = b"Xing" + (1).to_bytes(4, "big") + (stream.frames + 1).to_bytes(4, "big")
    content += b"LAME3.100".ljust(21, b"\0") + (delay << 12).to_bytes(3, "big")
    return tag[: header.tag] + content + tag[header.tag + len(content) :] + silence


def _empty_frame(stream: _Stream, length: int) -> bytes:
    """Returns a silent frame in the format of the stream, with at least `length` bytes."""
    for bitrate in range(1, 15):
        head = bytes(
            [0xFF, stream.head[1] | 1, bitrate << 4 | stream.head[2] & 0x0C, stream.head[3]]
        )
        header = _parse(head)
        if header is not None and header.length >= length:
            return head.ljust(header.length, b"\0")
    raise AssertionError(f"no frame of this format has {length} bytes")
