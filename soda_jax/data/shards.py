"""A shard: an ArrayRecord file of records and the index beside it.

`shard-00000.array_record` holds one record a chunk (group_size 1, not compressed: packed codes do not
shrink). `shard-00000.index.npz` holds the counts of every record, so that a window is found without
reading the shard, and its place in the file, so that it can be read by byte range. The index appears first and the shard last, each by atomic rename: a shard that is
there is whole.
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

from soda_jax.data.records import (
    FIRST,
    OPENS,
    PART_MASK,
    PART_SHIFT,
    TEXT,
    WHOLE,
    RecordData,
    encode_record,
)
from soda_jax.data.storage.places import find_places
from soda_jax.errors import UserError
from soda_jax.file_sums import file_sum
from soda_jax.files import write_atomic
from soda_jax.tokens.vocabulary import VocabularyLayout

INDEX_VERSION = 2
_WITHOUT_PLACES = 1  # the version before
SHARD_SUFFIX = ".array_record"
INDEX_SUFFIX = ".index.npz"
_OPTIONS = "group_size:1,uncompressed"
_COLUMNS = {
    "text_tokens": np.uint32,
    "frames": np.uint32,
    "utterances": np.uint32,
    "flags": np.uint8,
    "document_hashes": np.uint64,
}


@dataclasses.dataclass(frozen=True, eq=False)
class ShardIndex:
    """Counts of the records of a shard, in stored order.

    Attributes:
      text_tokens: text ids, uint32 `[records]`.
      frames: codec frames, uint32 `[records]`.
      utterances: utterances or pieces of one, uint32 `[records]`.
      flags: see `records.RecordData.flags`, uint8 `[records]`.
      document_hashes: `document_hash` of each document, uint64 `[documents]`.
      places: where each record's chunk begins in the shard and where the last one ends, in bytes,
        uint64 `[records + 1]`, see `storage.places`; None in an index of version 1 and where the
        indexes of several shards are joined.
    """

    text_tokens: np.ndarray
    frames: np.ndarray
    utterances: np.ndarray
    flags: np.ndarray
    document_hashes: np.ndarray
    places: np.ndarray | None = None

    @property
    def part(self) -> np.ndarray:
        """Kind of each record: 0 whole, 1 text, 2 audio."""
        return self.flags >> PART_SHIFT & PART_MASK

    @classmethod
    def joined(cls, indexes: "Sequence[ShardIndex]") -> "ShardIndex":
        """The records of several shards as one row."""
        return cls(**{
            name: np.concatenate([getattr(index, name) for index in indexes]) for name in _COLUMNS
        })  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What the manifest says about a shard.

    Attributes:
      file: name of the shard in the folder of its split.
      records: number of records.
      documents: number of documents; none is spread over two shards.
      utterances: number of utterances, those in pieces counted once.
      text_tokens: text ids, markers not counted.
      frames: codec frames.
      bytes: size of the shard.
      crc32c: checksum of the shard, 8 hexadecimal digits.
      index_crc32c: checksum of the index, likewise.
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
    """The first 64 bits of a BLAKE2b of the id, by which an index knows a document."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "little")


def index_path(shard: str | os.PathLike[str]) -> Path:
    """Path of the index of a shard."""
    path = Path(shard)
    return path.with_name(path.name.removesuffix(SHARD_SUFFIX) + INDEX_SUFFIX)


class ShardWriter:
    """Writes one shard; nothing is visible under its name before `close`.

    As a context manager it closes at the end of the block and discards the files on an exception.
    """

    def __init__(self, path: str | os.PathLike[str], layout: VocabularyLayout):
        """Args: path: where the shard will be, ending in `.array_record`. layout: its vocabulary."""
        from array_record.python.array_record_module import ArrayRecordWriter

        self._path, self._layout = Path(path), layout
        if not self._path.name.endswith(SHARD_SUFFIX):
            raise ValueError(f"{self._path} does not end in {SHARD_SUFFIX}")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        self._writer = ArrayRecordWriter(str(self._temporary), _OPTIONS)
        self._rows: list[tuple[int, int, int, int]] = []
        self._hashes: list[int] = []
        self._inside = False

    def write(self, record: RecordData) -> None:
        """Appends a record; the records of a document follow each other, first to last."""
        if record.first == self._inside:
            raise ValueError(f"records of {record.document_id} are out of order")
        self._writer.write(encode_record(record, self._layout))
        self._inside = not record.last
        text_tokens = sum(len(utterance.text_ids) for utterance in record.utterances)
        frames = sum(len(utterance.codes) for utterance in record.utterances)
        self._rows.append((text_tokens, frames, len(record.utterances), record.flags))
        if record.first:
            self._hashes.append(document_hash(record.document_id))

    def close(self) -> ShardInfo:
        """Makes index and shard visible and returns what the manifest needs to know."""
        if self._inside:
            self.discard()
            raise ValueError(f"the last document of {self._path} is not complete")
        self._writer.close()
        with open(self._temporary, "rb") as file:
            os.fsync(file.fileno())
        columns = np.array(self._rows, np.int64).reshape(-1, 4).T
        content = io.BytesIO()
        arrays = dict(zip(_COLUMNS, (*columns, np.array(self._hashes, np.uint64)), strict=True))
        typed = {name: arrays[name].astype(kind) for name, kind in _COLUMNS.items()}
        places = shard_places(self._temporary)
        version = np.array(INDEX_VERSION)
        np.savez(content, allow_pickle=False, version=version, **typed, places=places)
        write_atomic(index_path(self._path), content.getvalue())
        os.replace(self._temporary, self._path)
        return read_shard_info(self._path)

    def discard(self) -> None:
        """Gives up: removes the temporary file."""
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
      crc32c: the checksum that the manifest states, None to skip the comparison.

    Raises:
      UserError: if the file is missing, damaged, or of another version.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the index: {error.strerror}") from None
    if crc32c is not None and _hex(google_crc32c.value(content)) != crc32c:
        raise UserError(
            f"{path} is damaged: its crc32c is {_hex(google_crc32c.value(content))}, the manifest "
            f"says {crc32c}; restore the file or tokenize the shard again"
        )
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            version = int(file["version"])
            columns = {name: file[name] for name in _COLUMNS}
            if version != _WITHOUT_PLACES:
                columns["places"] = file["places"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a shard index: {error}; tokenize the shard again") from None
    if version not in (_WITHOUT_PLACES, INDEX_VERSION):
        raise UserError(
            f"{path} has index version {version}, this program reads {_WITHOUT_PLACES} and "
            f"{INDEX_VERSION}"
        )
    return ShardIndex(**columns)


def shard_places(path: str | os.PathLike[str]) -> np.ndarray:
    """`ShardIndex.places` of a shard, from its own footer; ValueError if it has none."""
    with open(path, "rb") as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        return find_places(read, os.path.getsize(path))


def read_shard_info(path: str | os.PathLike[str]) -> ShardInfo:
    """Describes a finished shard from its two files.

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
    """Size in bytes and crc32c (8 hexadecimal digits) of a file; UserError if it cannot be read."""
    try:
        return file_sum(Path(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; restore the file") from None


def _hex(value: int) -> str:
    return f"{value:08x}"
