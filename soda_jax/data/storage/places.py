"""Where the records of a shard lie in its file, so that one can be read by byte range alone.

An ArrayRecord file is a Riegeli/records file: chunks one behind the other, interrupted at every
multiple of 64 KiB by a block header of 24 bytes. A chunk has a header of 40 bytes; ours hold one record
each, not compressed (see `shards.py`). Behind the last record stands the footer, a chunk with the place
of every other one, and the file ends with the postscript, a block of 64 KiB that says where the footer
begins (doc/riegeli_records_file_format.md of google/riegeli; cpp/layout.proto of google/array_record).
"""

import struct
from collections.abc import Callable, Iterator

import numpy as np

BLOCK, BLOCK_HEADER = 1 << 16, 24
# Bytes [start, stop) of a file; whoever gives them answers for their number.
ReadRange = Callable[[int, int], bytes]

_CHUNK_HEADER = struct.Struct(
    "<QQQQQ"
)  # hash, data size, data hash, type and records, decoded size
_RECORDS = ord("r")
_MAGIC = 0x71930E704FDAE05E  # of the postscript
_PLAIN = 0  # compression: none
_POSTSCRIPT_BYTES = 256  # more than its headers and content take


def find_places(read: ReadRange, size: int) -> np.ndarray:
    """Where each record's chunk begins, and where the last one ends, from the footer of a shard.

    Args:
      read: gives bytes [start, stop) of the shard; called twice.
      size: of the shard, in bytes.

    Returns:
      uint64 `[records + 1]`; record n is in the bytes [places[n], places[n + 1]).

    Raises:
      ValueError: if these are not the last bytes of a shard, or a chunk holds several records.
    """
    if size < 2 * BLOCK or size % BLOCK:
        raise ValueError(f"{size} bytes are not a whole number of blocks")
    tail = size - BLOCK
    # It stands there three times.
    postscripts = _values(read(tail, tail + _POSTSCRIPT_BYTES), tail)
    fields = _fields(postscripts[0]) if postscripts else {}
    footer = fields.get(1, 0)
    if fields.get(2) != _MAGIC or not 0 < footer < tail:
        raise ValueError("its last block is not the postscript of an ArrayRecord file")
    about, *chunks = _values(read(footer, tail), footer) or [b""]
    places = np.empty(len(chunks) + 1, np.uint64)
    for number, chunk in enumerate(chunks):
        fields = _fields(chunk)
        if fields.get(3) != 1:
            raise ValueError(f"its chunk {number} holds {fields.get(3, 0)} records, not one")
        places[number] = fields.get(1, 0)
    places[-1] = footer
    if about[:1] != b"\x0a" or (np.diff(places.astype(np.int64)) <= 0).any():
        raise ValueError("its footer is damaged")
    return places


def unpack_record(chunk: bytes, start: int) -> bytes:
    """The record in the bytes of its chunk, which begin at byte `start` of the file.

    Raises:
      ValueError: if the bytes are not a chunk with one uncompressed record.
    """
    values = _values(chunk, start)
    if len(values) != 1:
        raise ValueError(f"there are {len(values)} records in its place")
    return values[0]


def _values(chunk: bytes, start: int) -> list[bytes]:
    """The records of the chunk that begins at byte `start`; what follows the chunk is ignored."""
    data = _without_block_headers(chunk, start)
    if len(data) < _CHUNK_HEADER.size:
        raise ValueError("it is not where its index says: no chunk begins there")
    _, stored, _, kind, decoded = _CHUNK_HEADER.unpack_from(data)
    count, kind = kind >> 8, kind & 255
    body = data[_CHUNK_HEADER.size : _CHUNK_HEADER.size + stored]
    if kind != _RECORDS or len(body) != stored or not body or body[0] != _PLAIN:
        raise ValueError("it is not where its index says, or not stored plainly")
    sizes_size, begin = _varint(body, 1)
    place = begin + sizes_size
    if place + decoded != stored or sizes_size < count:
        raise ValueError("the lengths in its chunk contradict each other")
    values: list[bytes] = []
    for _ in range(count):
        length, begin = _varint(body, begin)
        values.append(body[place : place + length])
        place += length
    if place != stored:
        raise ValueError("the lengths in its chunk contradict each other")
    return values


def _without_block_headers(data: bytes, start: int) -> bytes:
    first = -start % BLOCK  # of the first block that begins in or behind `data`
    if first >= len(data):
        return data
    parts = [data[:first]]
    for block in range(first, len(data), BLOCK):
        parts.append(data[block + BLOCK_HEADER : block + BLOCK])
    return b"".join(parts)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A base-128 number and the place behind it."""
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError("a number in it has no end")
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            if value >= 1 << 64:
                raise ValueError("a number in it is too large")
            return value, place


def _fields(message: bytes) -> dict[int, int]:
    """The integer fields of a Protocol Buffers message, by number; there are no others here."""
    return dict(_pairs(message))


def _pairs(message: bytes) -> Iterator[tuple[int, int]]:
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key & 7:
            raise ValueError("its footer is damaged")
        value, place = _varint(message, place)
        yield key >> 3, value
