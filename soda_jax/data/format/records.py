"""Encodes and decodes records: parts of a document with text, text ids and codes.

The bytes of a record are as follows; integers are little-endian:

    header        version, flags (uint8), bytes of the id (uint16), utterances, text ids, frames,
                  bytes of the compressed text (uint32 each)
    document id   UTF-8
    counts        per utterance: bytes of text, text ids, frames (uint16; all uint32 if needed)
    codes         frame by frame, ceil(log2(size of codebook k)) bits each
    text ids      ceil(log2(text vocabulary)) bits each
    text          UTF-8 of all utterances, zlib
    crc32c        of all preceding bytes (uint32)
"""

import dataclasses
import struct
import zlib
from typing import NamedTuple

import google_crc32c
import numpy as np

from soda_jax.data.format.bits import packing
from soda_jax.errors import UserError
from soda_jax.tokens.documents import Utterance
from soda_jax.tokens.vocabulary import VocabularyLayout

RECORD_VERSION = 1
PARTS = ("whole", "text", "audio")
WHOLE, TEXT, AUDIO = range(3)
# Bits of the flags in records and indexes; _WIDE is used only in records.
FIRST, LAST, OPENS, CLOSES, _WIDE = 1, 2, 16, 32, 64
PART_SHIFT, PART_MASK = 2, 3
INDEX_FLAGS = 63

_HEADER = struct.Struct("<BBHIIII")
# The crc32c of any message followed by its own crc32c (little-endian) is this constant.
_RESIDUE = 0x48674BC7


class DamagedRecordError(UserError):
    """A record cannot be read, because its bytes or its shard are damaged or missing."""


@dataclasses.dataclass(eq=False)
class RecordData:
    """The content of a record.

    Attributes:
      document_id: id of the document, equal in all of its records.
      utterances: utterances in time order. They have no frames in a "text" part and no text in an
        "audio" part.
      part: "whole" (utterances with text and audio), or a piece of an utterance too long for one
        record: "text" or "audio". The records of a text-only document are "text".
      opens: whether the start marker of the span belongs to this piece (text and audio parts).
      closes: whether the end marker of the span belongs to this piece.
      first: whether this is the first record of the document, in stored order.
      last: whether this is the last record of the document.
    """

    document_id: str
    utterances: list[Utterance]
    part: str = "whole"
    opens: bool = True
    closes: bool = True
    first: bool = True
    last: bool = True

    @property
    def flags(self) -> int:
        """Part, `opens`, `closes`, `first` and `last` as a bit mask, uint8."""
        marks = FIRST * self.first | LAST * self.last | OPENS * self.opens | CLOSES * self.closes
        return marks | PARTS.index(self.part) << PART_SHIFT


class Header(NamedTuple):
    """Counts of a record, and the byte offsets of its sections."""

    flags: int
    utterances: int
    text_tokens: int
    frames: int
    document_id_end: int
    wide: bool
    codes_start: int
    text_ids_start: int
    text_start: int
    text_end: int


def encode_record(record: RecordData, layout: VocabularyLayout) -> bytes:
    """Returns the bytes of a record; `decode_record` is the inverse.

    Raises:
      UserError: for a document id of 0 or more than 65,535 bytes, text that is not valid Unicode,
        text ids that are special tokens, codes outside their codebook, or content that does not fit
        the part; the message names the document.
    """
    name, utterances = record.document_id, record.utterances
    check_record(record, layout)
    identifier, texts = _utf8(name, name), [_utf8(u.text, name) for u in utterances]
    if not 0 < len(identifier) < 1 << 16:
        raise UserError(f"document id {name[:40]!r} has {len(identifier)} bytes; use 1–65,535")
    rows = [
        (len(text), len(u.text_ids), len(u.codes))
        for text, u in zip(texts, utterances, strict=True)
    ]
    counts = np.array(rows, np.uint32).reshape(-1, 3)
    wide = bool(counts.max(initial=0) >= 1 << 16)
    ids = np.concatenate([u.text_ids for u in utterances]).astype(np.uint32)
    codes = np.concatenate([u.codes for u in utterances])
    text = b"".join(texts)
    compressed = zlib.compress(text, 9) if text else b""
    flags = record.flags | _WIDE * wide
    lengths = (len(utterances), len(ids), len(codes), len(compressed))
    body = b"".join(
        (
            _HEADER.pack(RECORD_VERSION, flags, len(identifier), *lengths),
            identifier,
            counts.astype("<u4" if wide else "<u2").tobytes(),
            packing(layout.codebook_sizes).pack(codes) if len(codes) else b"",
            packing((layout.text_size,)).pack(ids[:, None]),
            compressed,
        )
    )
    return body + struct.pack("<I", google_crc32c.value(body))


def checksum_matches(record: bytes) -> bool:
    """Returns whether the checksum of a record matches."""
    return len(record) >= _HEADER.size + 4 and google_crc32c.value(record) == _RESIDUE


def read_header(record: bytes, layout: VocabularyLayout) -> Header:
    """Checks the bytes of a record and returns its counts and the offsets of its sections.

    Raises:
      DamagedRecordError: if the checksum, the lengths or the version are wrong.
    """
    if not checksum_matches(record):
        raise DamagedRecordError("its checksum (crc32c) does not match")
    version, flags, name, utterances, text_tokens, frames, text = _HEADER.unpack_from(record)
    if version != RECORD_VERSION:
        raise DamagedRecordError(
            f"its format version is {version}, this program reads {RECORD_VERSION}"
        )
    wide = bool(flags & _WIDE)
    name_end = _HEADER.size + name
    codes = name_end + utterances * (12 if wide else 6)
    ids = codes + (packing(layout.codebook_sizes).size(frames) if frames else 0)
    text_start = ids + packing((layout.text_size,)).size(text_tokens)
    end = text_start + text
    if end + 4 != len(record):
        raise DamagedRecordError(f"it has {len(record)} bytes, its counts require {end + 4}")
    flags &= INDEX_FLAGS
    return Header(
        flags, utterances, text_tokens, frames, name_end, wide, codes, ids, text_start, end
    )


def read_counts(record: bytes, header: Header) -> np.ndarray:
    """Returns the counts per utterance (bytes of text, text ids, frames), `[utterances, 3]`.

    The dtype is uint16 or uint32.
    """
    kind = "<u4" if header.wide else "<u2"
    flat = np.frombuffer(record, kind, header.utterances * 3, header.document_id_end)
    return flat.reshape(-1, 3)


def decode_record(record: bytes, layout: VocabularyLayout) -> RecordData:
    """Decodes a record; the inverse of `encode_record`.

    Returns:
      The record; text_ids are int32 `[tokens]`, codes uint16 `[frames, codebooks]`.

    Raises:
      DamagedRecordError: if the checksum, the version, the lengths or the counts are wrong.
    """
    header = read_header(record, layout)
    counts = read_counts(record, header).astype(np.int64)
    text = b""
    if header.text_end > header.text_start:
        text = zlib.decompress(record[header.text_start : header.text_end])
    totals = counts.sum(axis=0).tolist()
    if totals != [len(text), header.text_tokens, header.frames]:
        raise DamagedRecordError(
            f"the counts of its utterances sum to {totals}, unlike its text, text ids and frames"
        )
    ids = packing((layout.text_size,)).unpack(record, header.text_ids_start, 0, header.text_tokens)
    codes = np.zeros((0, layout.codebooks), np.uint16)
    if header.frames:
        books = packing(layout.codebook_sizes)
        codes = books.unpack(record, header.codes_start, 0, header.frames).astype(np.uint16)
    ends = np.cumsum(counts, axis=0)
    utterances = [
        Utterance(text[a:b].decode(), ids[c:d, 0].astype(np.int32), codes[e:f])
        for (a, c, e), (b, d, f) in zip((ends - counts).tolist(), ends.tolist(), strict=True)
    ]
    return RecordData(
        record[_HEADER.size : header.document_id_end].decode(),
        utterances,
        part=PARTS[header.flags >> PART_SHIFT & PART_MASK],
        opens=bool(header.flags & OPENS),
        closes=bool(header.flags & CLOSES),
        first=bool(header.flags & FIRST),
        last=bool(header.flags & LAST),
    )


def _utf8(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text of document {name!r} is not valid Unicode: {error}; fix it"
        ) from None


def check_record(record: RecordData, layout: VocabularyLayout) -> None:
    """Raises UserError for invalid text ids or codes, or content that does not fit the part."""
    name = record.document_id
    if not record.utterances:
        raise UserError(f"document {name} has no utterances; remove it")
    for number, utterance in enumerate(record.utterances):
        where = f"utterance {number} of document {name}"
        ids, codes = utterance.text_ids, utterance.codes
        if (len(ids) > 0, len(codes) > 0) != (record.part != "audio", record.part != "text"):
            raise UserError(
                f"{where} has {len(ids)} text ids and {len(codes)} frames: "
                "speech needs both, and a text document must not have frames"
            )
        if codes.shape[1:] != (layout.codebooks,):
            raise UserError(f"{where}: codes {codes.shape} are not [frames, {layout.codebooks}]")
        high = codes >= np.array(layout.codebook_sizes)
        if high.any():
            frame, book = np.argwhere(high)[0].tolist()
            raise UserError(
                f"codes[{frame}, {book}] = {codes[frame, book]} is outside codebook {book} "
                f"(0–{layout.codebook_sizes[book] - 1}) in {where}"
            )
        if len(ids) and (ids.min() < 0 or ids.max() >= layout.text_size):
            raise UserError(f"{where} has text ids outside 0–{layout.text_size - 1}")
        if not layout.ordinary_text[ids].all():
            bad = int(ids[~layout.ordinary_text[ids]][0])
            raise UserError(f"{where} has text id {bad}, a special token; remove it")
