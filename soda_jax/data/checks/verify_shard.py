"""One shard, read from end to end: what of it is not as it was written, or not as the manifest says."""

import contextlib
import dataclasses
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.data.checks.verify_document import (
    SPEECH_VIEWS,
    TEXT_VIEWS,
    StoredRecord,
    document_fault,
)
from soda_jax.data.format.reading import open_shard
from soda_jax.data.format.records import (
    FIRST,
    OPENS,
    DamagedRecordError,
    Header,
    check_record,
    decode_record,
    read_header,
)
from soda_jax.data.format.rendering import Renderer
from soda_jax.data.format.shards import (
    ShardIndex,
    ShardInfo,
    document_hash,
    file_crc32c,
    index_path,
    read_index,
)
from soda_jax.data.storage.record_offsets import read_record_offsets
from soda_jax.errors import UserError
from soda_jax.tokens.vocabulary import VocabularyLayout

# What a record may raise whose bytes are not those that were written.
_UNUSABLE = (UserError, RuntimeError, ValueError, IndexError, struct.error, zlib.error)
_COUNTED = ("documents", "utterances", "text_tokens", "frames")


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something in a data set that is not as it should be.

    Attributes:
      file: which file, relative to the data set, with "/".
      message: what is wrong with it.
      records: numbers of those records of the shard `file` that cannot be used.
    """

    file: str
    message: str
    records: tuple[int, ...] = ()

    def describe(self) -> str:
        """The fault as lines of a `masked` file: a remark, and one line for each record."""
        remark = f"# {self.file}: {' '.join(self.message.split())}"
        return "\n".join([remark, *(f"{self.file} {number}" for number in self.records)])


class ShardVerifier:
    """Checks the shards of one data set, one after the other.

    Attributes:
      hashes: of the documents of each shard whose index is sound, by the shard's name; uint64.
    """

    def __init__(self, directory: Path, kind: str, layout: VocabularyLayout):
        """Args: directory: of the data set. kind: "speech" or "text". layout: of its records."""
        self._directory, self._layout = directory, layout
        views = TEXT_VIEWS if kind == "text" else SPEECH_VIEWS
        self._renderers = [Renderer(layout, view) for view in views]
        self.hashes: dict[str, np.ndarray] = {}

    def faults(self, split: str, shard: ShardInfo, advance: Callable[[], None]) -> Iterator[Fault]:
        """Yields what is wrong with a shard and its index.

        Args:
          split: its split.
          shard: what the manifest says of it.
          advance: called once for each record that the manifest counts.
        """
        path = self._directory / split / shard.file
        file = f"{split}/{shard.file}"
        try:
            size, crc32c = file_crc32c(path)
            if (size, crc32c) != (shard.bytes, shard.crc32c):
                yield Fault(
                    file,
                    f"it has {size} bytes of crc32c {crc32c}, the manifest says {shard.bytes} of "
                    f"{shard.crc32c}",
                )
            reader = open_shard(path)
            if reader.num_records() != shard.records:
                raise DamagedRecordError(
                    f"it has {reader.num_records()} records, the manifest says {shard.records}"
                )
        except UserError as error:
            # A run reads no record of such a shard.
            yield Fault(file, str(error), tuple(range(shard.records)))
            reader = None
        index = None
        try:
            index = self._read_index(path, shard)
            self.hashes[file] = index.document_hashes
        except UserError as error:
            yield Fault(f"{split}/{index_path(path).name}", str(error))
        if reader is not None:
            yield from self._record_faults(reader, file, shard, index, advance)
        else:
            for _ in range(shard.records):
                advance()

    def _read_index(self, path: Path, shard: ShardInfo) -> ShardIndex:
        index = read_index(index_path(path), shard.index_crc32c)
        columns = (index.flags, index.utterances, index.text_tokens, index.frames)
        if any(len(column) != shard.records for column in columns):
            lengths = " and ".join(map(str, sorted({len(column) for column in columns})))
            raise UserError(f"it describes {lengths} records, the manifest {shard.records}")
        begun, named = int(np.count_nonzero(index.flags & FIRST)), len(index.document_hashes)
        if begun != named or named != shard.documents:
            raise UserError(
                f"it names {named} documents and {begun} begin in it, the manifest says "
                f"{shard.documents}"
            )
        if path.is_file():
            with contextlib.suppress(ValueError):  # the damaged shard has its own fault
                if not np.array_equal(index.record_offsets, read_record_offsets(path)):
                    raise UserError("its record offsets are not those of the shard")
        return index

    def _record_faults(
        self,
        reader: Any,
        file: str,
        shard: ShardInfo,
        index: ShardIndex | None,
        advance: Callable[[], None],
    ) -> Iterator[Fault]:
        counts: Counter[str] = Counter()
        document: list[StoredRecord] = []
        lost = False  # whether a record of the present document could not be used
        for number in range(shard.records):
            advance()
            try:
                record = self._read(reader, number)
            except _UNUSABLE as error:
                yield Fault(file, f"record {number}: {error}", (number,))
                document, lost = [], True
                counts["lost"] += 1
                continue
            _count(counts, record)
            if index is not None and (message := _index_difference(index, record.header, number)):
                yield Fault(file, f"record {number}: {message}", (number,))
            first, last = record.data.first, record.data.last
            if first and document:
                yield _of_document(file, document, "it has no last record")
            elif not first and not document and not lost:
                yield Fault(file, f"record {number}: it goes on with no document", (number,))
                continue
            if first:
                document, lost = [], False
            if lost:
                continue
            document.append(record)
            if last:
                if message := self._document_message(document, index):
                    yield _of_document(file, document, message)
                document = []
        if document:
            yield _of_document(file, document, "it has no last record")
        for name in _COUNTED:
            # A lost record makes every count wrong, and has been named.
            if not counts["lost"] and counts[name] != getattr(shard, name):
                stated, label = getattr(shard, name), name.replace("_", " ")
                yield Fault(file, f"it has {counts[name]} {label}, the manifest says {stated}")

    def _read(self, reader: Any, number: int) -> StoredRecord:
        content = reader.read([number])[0]
        header = read_header(content, self._layout)
        data = decode_record(content, self._layout)
        check_record(data, self._layout)
        return StoredRecord(number, content, header, data)

    def _document_message(self, records: list[StoredRecord], index: ShardIndex | None) -> str:
        names = {record.data.document_id for record in records}
        if len(names) > 1:
            return f"its records are of several documents: {', '.join(sorted(names))}"
        if index is not None:
            place = int(np.count_nonzero(index.flags[: records[0].number + 1] & FIRST)) - 1
            # A first record that the index does not know as one has been named already.
            if place >= 0 and index.document_hashes[place] != np.uint64(document_hash(*names)):
                return f"document {place} of the index is another"
        return document_fault(records, self._renderers, self._layout)


def _of_document(file: str, records: list[StoredRecord], message: str) -> Fault:
    numbers = tuple(record.number for record in records)
    shown = f"record {numbers[0]}" + (f" to {numbers[-1]}" if len(numbers) > 1 else "")
    return Fault(file, f"{shown}, document {records[0].data.document_id}: {message}", numbers)


def _index_difference(index: ShardIndex, header: Header, number: int) -> str:
    """The columns in which a record and its row of the index differ, in words; "" if in none."""
    pairs = {
        name: (getattr(header, name), int(getattr(index, name)[number]))
        for name in ("flags", "utterances", "text_tokens", "frames")
    }
    differing = [
        f"{found} {name.replace('_', ' ')}, the index says {stated}"
        for name, (found, stated) in pairs.items()
        if found != stated
    ]
    return f"it has {', '.join(differing)}" if differing else ""


def _count(counts: Counter[str], record: StoredRecord) -> None:
    counts["documents"] += record.data.first
    counts["text_tokens"] += record.header.text_tokens
    counts["frames"] += record.header.frames
    if record.data.part == "whole":
        counts["utterances"] += record.header.utterances
    elif record.data.part == "text":  # of an utterance in pieces the first piece counts
        counts["utterances"] += bool(record.header.flags & (FIRST | OPENS))
