"""Reads the byte offsets of the records in a shard, for reading single records by byte range.

An ArrayRecord file is a Riegeli/records file: a sequence of chunks, with a block header of 24 bytes
at every multiple of 64 KiB. A chunk starts with a header of 40 bytes. In our shards, a data chunk
contains one uncompressed record (see `shards.py`). The chunk after them is the footer, which lists
their offsets. The last block of 64 KiB is the postscript, which contains the offset of the footer
(doc/riegeli_records_file_format.md of google/riegeli; cpp/layout.proto of google/array_record).
"""

import os
import struct
from collections.abc import Iterator

import numpy as np

BLOCK, BLOCK_HEADER = 1 << 16, 24

_CHUNK_HEADER = struct.Struct(
    "<QQQQQ"
)  # hash, data size, data hash, type and number of records, decoded size
_RECORDS = ord("r")
_MAGIC = 0x71930E704FDAE05E  # magic number in the postscript
_UNCOMPRESSED = 0
_POSTSCRIPT_BYTES = 256  # an upper bound for the size of the postscript's chunk


def read_record_offsets(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads the offset of each record's chunk, and the end of the last chunk, from a shard's footer.

    Args:
      path: a shard on a local disk; only its footer and postscript are read.

    Returns:
      uint64 `[records + 1]`; record n is in the bytes [offsets[n], offsets[n + 1]).

    Raises:
      ValueError: if the footer or postscript is invalid, or a chunk does not hold exactly one
        record.
    """
    size = os.path.getsize(path)
    if size < 2 * BLOCK or size % BLOCK:
        raise ValueError(f"its size, {size} bytes, is not n × {BLOCK}, n at least 2")
    tail = size - BLOCK
    with open(path, "rb") as file:
        file.seek(tail)
        # The postscript is stored three times in a row; the first copy is used.
        postscripts = _records(file.read(_POSTSCRIPT_BYTES), tail)
        fields = _fields(postscripts[0]) if postscripts else {}
        footer = fields.get(1, 0)
        if fields.get(2) != _MAGIC or not 0 < footer < tail:
            raise ValueError("its last block is not the postscript of an ArrayRecord file")
        file.seek(footer)
        metadata, *chunks = _records(file.read(tail - footer), footer) or [b""]
    offsets = np.empty(len(chunks) + 1, np.uint64)
    for number, chunk in enumerate(chunks):
        fields = _fields(chunk)
        if fields.get(3) != 1:
            raise ValueError(f"its chunk {number} holds {fields.get(3, 0)} records, not one")
        offsets[number] = fields.get(1, 0)
    offsets[-1] = footer
    if metadata[:1] != b"\x0a" or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise ValueError("its footer is damaged")
    return offsets


def unpack_record(chunk: bytes, start: int) -> bytes:
    """Returns the record in a chunk that was read from byte `start` of its file.

    Raises:
      ValueError: if the bytes are not a chunk with one uncompressed record.
    """
    records = _records(chunk, start)
    if len(records) != 1:
        raise ValueError(f"its chunk holds {len(records)} records, not one")
    return records[0]


def _records(chunk: bytes, start: int) -> list[bytes]:
    """Returns the records of a chunk at byte `start` of the file; ignores bytes after the chunk."""
    data = _remove_block_headers(chunk, start)
    if len(data) < _CHUNK_HEADER.size:
        raise ValueError("there is no chunk at the offset in the index")
    _, stored, _, kind, decoded = _CHUNK_HEADER.unpack_from(data)
    count, kind = kind >> 8, kind & 255
    body = data[_CHUNK_HEADER.size : _CHUNK_HEADER.size + stored]
    if kind != _RECORDS or len(body) != stored or not body or body[0] != _UNCOMPRESSED:
        raise ValueError("there is no uncompressed chunk at the offset in the index")
    sizes_size, position = _varint(body, 1)
    record_start = position + sizes_size
    if record_start + decoded != stored or sizes_size < count:
        raise ValueError("the sizes in its chunk are inconsistent")
    records: list[bytes] = []
    for _ in range(count):
        size, position = _varint(body, position)
        records.append(body[record_start : record_start + size])
        record_start += size
    if record_start != stored:
        raise ValueError("the sizes in its chunk are inconsistent")
    return records


def _remove_block_headers(data: bytes, start: int) -> bytes:
    first = -start % BLOCK  # position of the next block header at or after byte `start`
    if first >= len(data):
        return data
    parts = [data[:first]]
    for block in range(first, len(data), BLOCK):
        parts.append(data[block + BLOCK_HEADER : block + BLOCK])
    return b"".join(parts)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns the varint at a position, and the position after it."""
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("the chunk contains a truncated varint")
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            if value >= 1 << 64:
                raise ValueError("the chunk contains a varint of more than 64 bits")
            return value, position


def _fields(message: bytes) -> dict[int, int]:
    """Returns the fields of a Protocol Buffers message by number; all fields must be integers."""
    return dict(_field_pairs(message))


def _field_pairs(message: bytes) -> Iterator[tuple[int, int]]:
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        if key & 7:
            raise ValueError("its footer is damaged")
        value, position = _varint(message, position)
        yield key >> 3, value
