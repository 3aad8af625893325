"""Writes and reads shards; a shard is an ArrayRecord file with an index.

`shard-00000.array_record` holds one record per chunk (group_size 1), uncompressed, because packed codes do
not compress. `shard-00000.index.npz` holds the counts of every record, so that a window is found without
reading the shard, and the offset of every record, so that it can be read by byte range. The index
is renamed to its final name before the shard, so a shard that exists is complete and has its index.
"""

import dataclasses
import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np

from soda_jax.data.format.records import (
    FIRST,
    OPENS,
    PART_MASK,
    PART_SHIFT,
    TEXT,
    WHOLE,
    RecordData,
    encode_record,
)
from soda_jax.data.storage.record_offsets import read_record_offsets
from soda_jax.errors import UserError
from soda_jax.file_sums import file_sum
from soda_jax.files import write_atomic
from soda_jax.tokens.vocabulary import VocabularyLayout

INDEX_VERSION = 3
SHARD_SUFFIX = ".array_record"
INDEX_SUFFIX = ".index.npz"
_OPTIONS = "group_size:1,uncompressed"
_COLUMNS = {
    "text_tokens": np.uint32,
    "frames": np.uint32,
    "utterances": np.uint32,
    "flags": np.uint8,
    "document_hashes": np.uint64,
    "record_offsets": np.uint64,
}


@dataclasses.dataclass(frozen=True, eq=False)
class ShardIndex:
    """Counts and offsets of the records of a shard, in stored order.

    Attributes:
      text_tokens: number of text ids, uint32 `[records]`.
      frames: number of codec frames, uint32 `[records]`.
      utterances: number of utterances, uint32 `[records]`; 1 for a piece of an utterance.
      flags: see `records.RecordData.flags`, uint8 `[records]`.
      document_hashes: `document_hash` of each document, uint64 `[documents]`.
      record_offsets: offset of each record's chunk in the shard, and the end of the last chunk,
        uint64 `[records + 1]`, see `storage.record_offsets`; empty in the joined index of several shards.
    """

    text_tokens: np.ndarray
    frames: np.ndarray
    utterances: np.ndarray
    flags: np.ndarray
    document_hashes: np.ndarray
    record_offsets: np.ndarray

    @property
    def part(self) -> np.ndarray:
        """Kind of each record: 0 whole, 1 text, 2 audio."""
        return self.flags >> PART_SHIFT & PART_MASK

    @classmethod
    def joined(cls, indexes: "Sequence[ShardIndex]") -> "ShardIndex":
        """Returns the records of several shards as one index, without offsets."""
        columns = {
            name: np.concatenate([getattr(index, name) for index in indexes]) for name in _COLUMNS
        }
        return cls(**{**columns, "record_offsets": np.zeros(0, np.uint64)})


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """The entry of a shard in the manifest.

    Attributes:
      file: name of the shard in the folder of its split.
      records: number of records.
      documents: number of documents; a document is never split over shards.
      utterances: number of utterances; an utterance that is stored in pieces counts once.
      text_tokens: number of text ids, without markers.
      frames: number of codec frames.
      bytes: size of the shard in bytes.
      crc32c: checksum of the shard, 8 hexadecimal digits.
      index_crc32c: checksum of the index, 8 hexadecimal digits.
    """

    file: str
    records: int
    documents: int
    utterances: int
    text_tokens: int
    frames: int
    bytes: int
    crc32c: str
    index_crc32c: str


def document_hash(document_id: str) -> int:
    """Returns the 64-bit BLAKE2b hash of the id; indexes identify documents by this hash."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "little")


def index_path(shard: str | os.PathLike[str]) -> Path:
    """Returns the path of the index of a shard."""
    path = Path(shard)
    return path.with_name(path.name.removesuffix(SHARD_SUFFIX) + INDEX_SUFFIX)


class ShardWriter:
    """Writes one shard; the files get their final names in `close`.

    As a context manager, the writer calls `close` at the end of the block, or `discard` after an
    exception.
    """

    def __init__(self, path: str | os.PathLike[str], layout: VocabularyLayout):
        """Opens a temporary file next to `path`.

        Args:
          path: final path of the shard, ending in `.array_record`.
          layout: vocabulary layout of the records.
        """
        from array_record.python.array_record_module import ArrayRecordWriter

        self._path, self._layout = Path(path), layout
        if not self._path.name.endswith(SHARD_SUFFIX):
            raise ValueError(f"{self._path} does not end in {SHARD_SUFFIX}")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        self._writer = ArrayRecordWriter(str(self._temporary), _OPTIONS)
        self._rows: list[tuple[int, int, int, int]] = []
        self._hashes: list[int] = []
        self._in_document = False

    def write(self, record: RecordData) -> None:
        """Appends a record; the records of a document must be consecutive and in order."""
        if record.first == self._in_document:
            raise ValueError(f"records of {record.document_id} are out of order")
        self._writer.write(encode_record(record, self._layout))
        self._in_document = not record.last
        text_tokens = sum(len(utterance.text_ids) for utterance in record.utterances)
        frames = sum(len(utterance.codes) for utterance in record.utterances)
        self._rows.append((text_tokens, frames, len(record.utterances), record.flags))
        if record.first:
            self._hashes.append(document_hash(record.document_id))

    def close(self) -> ShardInfo:
        """Writes the index, renames the shard, and returns its entry for the manifest."""
        if self._in_document:
            self.discard()
            raise ValueError(f"the last document of {self._path} is not complete")
        self._writer.close()
        with open(self._temporary, "rb") as file:
            os.fsync(file.fileno())
        counts = np.array(self._rows, np.int64).reshape(-1, 4).T
        hashes = np.array(self._hashes, np.uint64)
        offsets = read_record_offsets(self._temporary)
        arrays = dict(zip(_COLUMNS, (*counts, hashes, offsets), strict=True))
        typed = {name: arrays[name].astype(kind) for name, kind in _COLUMNS.items()}
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, version=np.array(INDEX_VERSION), **typed)
        write_atomic(index_path(self._path), content.getvalue())
        os.replace(self._temporary, self._path)
        return read_shard_info(self._path)

    def discard(self) -> None:
        """Removes the temporary file."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.discard()
        elif self._temporary.exists():
            self.close()


def read_index(path: str | os.PathLike[str], crc32c: str | None = None) -> ShardIndex:
    """Reads the index of a shard.

    Args:
      path: the `.index.npz` file.
      crc32c: the checksum in the manifest; None to skip the comparison.

    Raises:
      UserError: if the file is missing, damaged, or has another version.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the index: {error.strerror}; restore it") from None
    if crc32c is not None and _hex(google_crc32c.value(content)) != crc32c:
        raise UserError(
            f"{path} is damaged: its crc32c is {_hex(google_crc32c.value(content))}, the manifest "
            f"has {crc32c}; restore the file or tokenize the shard again"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            version = int(file["version"])
            if version != INDEX_VERSION:
                raise UserError(
                    f"{path} has index version {version}, this program reads {INDEX_VERSION}; "
                    "tokenize the corpus again"
                )
            return ShardIndex(**{name: file[name] for name in _COLUMNS})
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a shard index: {error}; tokenize the shard again") from None


def read_shard_info(path: str | os.PathLike[str]) -> ShardInfo:
    """Computes the manifest entry of a finished shard from the shard and its index.

    Raises:
      UserError: if the shard or its index is missing or the index is damaged.
    """
    index_file = index_path(path)
    index = read_index(index_file)
    size, crc32c = file_crc32c(path)
    pieces = (index.part == TEXT) & ((index.flags & (FIRST | OPENS)) > 0)
    utterances = int(index.utterances[index.part == WHOLE].sum()) + int(pieces.sum())
    return ShardInfo(
        file=Path(path).name,
        records=len(index.flags),
        documents=len(index.document_hashes),
        utterances=utterances,
        text_tokens=int(index.text_tokens.sum(dtype=np.int64)),
        frames=int(index.frames.sum(dtype=np.int64)),
        bytes=size,
        crc32c=crc32c,
        index_crc32c=file_crc32c(index_file)[1],
    )


def file_crc32c(path: str | os.PathLike[str]) -> tuple[int, str]:
    """Returns the size in bytes and the crc32c (8 hexadecimal digits) of a file.

    Raises:
      UserError: if the file cannot be read.
    """
    try:
        return file_sum(Path(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; restore the file") from None


def _hex(value: int) -> str:
    return f"{value:08x}"
