"""Reads the records and documents of one split of a data set, using the shard indexes."""

import bisect
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from soda_jax.data.format.manifest import SPLITS, Manifest
from soda_jax.data.format.reading import damaged
from soda_jax.data.format.records import FIRST, LAST, DamagedRecordError, decode_record
from soda_jax.data.format.shards import ShardIndex, document_hash
from soda_jax.data.format.splitting import join_records
from soda_jax.data.storage.locations import Location
from soda_jax.data.storage.modes import Storage
from soda_jax.errors import UserError
from soda_jax.tokens.documents import Utterance

_LOG = logging.getLogger(__name__)
_PREFETCHED_DOCUMENTS = 32


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """Excluded documents, masked records and the corrupt-record policy of a split.

    Attributes:
      exclude_documents: ids of the excluded documents.
      mask_records: (shard file, record number) of the records that are not read and whose loss is
        masked. The file is "train/shard-…", "validation/shard-…", or a file name without a split,
        which applies to the split that is read.
      on_corrupt_record: "fatal" or "mask", the policy for a record that cannot be read.
    """

    exclude_documents: frozenset[str] = frozenset()
    mask_records: frozenset[tuple[str, int]] = frozenset()
    on_corrupt_record: str = "fatal"


class Split:
    """The records and documents of a split; record numbers are consecutive across shards.

    Attributes:
      name: name of the source in the config.
      manifest: manifest of the generation that is read.
      index: the joined indexes of all shards.
      masked: numbers of the records masked by the config.
      excluded_documents: number of documents excluded by the config.
      damage: messages about the damaged records that were masked, by (shard file, record number).
      prefetches: whether `prefetch` has an effect.
    """

    def __init__(
        self,
        name: str,
        directory: Location,
        manifest: Manifest,
        split: str,
        options: SplitOptions,
        storage: Storage,
    ):
        """Opens the shards of the split and reads their indexes.

        Raises:
          UserError: if the split is empty or lacks a record of `mask_records`, or an index is
            damaged or does not match the manifest.
        """
        self.name, self.manifest, self.directory, self.split = name, manifest, directory, split
        self._options = options
        self._shards = manifest.splits.get(split, ())
        if not self._shards:
            raise UserError(f"source {name}: {directory} has no {split} split; tokenize more data")
        self._store, indexes = storage.open(name, directory, split, self._shards)
        self._check(indexes)
        self.index = ShardIndex.joined(indexes)
        self.prefetches = self._store.prefetches
        counts = (shard.records for shard in self._shards)
        self._shard_starts = list(itertools.accumulate(counts, initial=0))
        self.masked = self._find_masked()
        self.damage: dict[tuple[str, int], str] = {}
        hashes = {document_hash(identifier) for identifier in options.exclude_documents}
        self._excluded = np.isin(self.index.document_hashes, np.array(sorted(hashes), np.uint64))
        self.excluded_documents = int(self._excluded.sum())

    def _check(self, indexes: Sequence[ShardIndex]) -> None:
        for number, (shard, index) in enumerate(zip(self._shards, indexes, strict=True)):
            if len(index.flags) != shard.records or len(index.document_hashes) != shard.documents:
                raise UserError(
                    f"{self._store.location(number)}: its index has {len(index.flags)} records of "
                    f"{len(index.document_hashes)} documents, the manifest has {shard.records} of "
                    f"{shard.documents}; restore the data set"
                )

    def _find_masked(self) -> frozenset[int]:
        numbers = {shard.file: number for number, shard in enumerate(self._shards)}
        found = set()
        for file, record in self._options.mask_records:
            split, _, name = file.rpartition("/")
            if split in SPLITS and split != self.split:
                continue  # a mask_records file may list records of all splits
            known = split in ("", self.split) and name in numbers
            if not known or not 0 <= record < self._shards[numbers[name]].records:
                raise UserError(f"source {self.name}: no record {file} {record} (mask_records)")
            found.add(self._shard_starts[numbers[name]] + record)
        return frozenset(found)

    @cached_property
    def kept_records(self) -> np.ndarray:
        """True for the records of documents that are not excluded, bool `[records]`."""
        document = np.cumsum((self.index.flags & FIRST) > 0) - 1
        return ~self._excluded[document]

    def read_record(self, number: int) -> bytes:
        """Returns the bytes of a record.

        Raises:
          DamagedRecordError: if the shard is missing or the record is damaged.
          StoreError: if the remote store cannot be read, whatever `on_corrupt_record` is.
        """
        return self._store.read(*self._in_shard(number))

    def prefetch(self, numbers: Iterator[int]) -> Sequence[object]:
        """Requests records; they stay in memory while the result is referenced."""
        return self._store.prefetch(self._in_shard(n) for n in numbers if n not in self.masked)

    @cached_property
    def documents(self) -> np.ndarray:
        """First record and last record + 1 of each document to read, int64 `[n, 2]`.

        Excluded documents and documents with masked records are omitted.
        """
        firsts = np.flatnonzero(self.index.flags & FIRST)
        lasts = np.flatnonzero(self.index.flags & LAST) + 1
        kept = self.kept_records[firsts]
        masked = np.searchsorted(firsts, sorted(self.masked), side="right") - 1
        kept[masked.astype(np.int64)] = False
        return np.stack([firsts, lasts], axis=1)[kept]

    def read_document(self, first: int, last: int) -> tuple[str, list[Utterance]] | None:
        """Reads the document of records [first, last), see `documents`.

        Returns:
          The id and the utterances; None if a record is damaged and `on_corrupt_record` is "mask".

        Raises:
          DamagedRecordError: if a record is damaged and `on_corrupt_record` is "fatal".
        """
        records = []
        for number in range(first, last):
            try:
                records.append(decode_record(self.read_record(number), self.manifest.layout))
            except DamagedRecordError as error:
                self.report_damage(number, error)
        if len(records) < last - first:
            return None
        return records[0].document_id, join_records(records)

    def prefetched_documents(self) -> Iterator[tuple[int, int]]:
        """Yields the rows of `documents`; prefetches the records of several documents at once."""
        rows = self.documents.tolist()
        for begin in range(0, len(rows), _PREFETCHED_DOCUMENTS):
            group = rows[begin : begin + _PREFETCHED_DOCUMENTS]
            prefetched = self.prefetch(n for first, last in group for n in range(first, last))
            yield from ((first, last) for first, last in group)
            del prefetched

    def report_damage(self, number: int, error: DamagedRecordError) -> None:
        """Applies `on_corrupt_record`: raises the error, or stores it and logs it once."""
        shard, in_shard = self._in_shard(number)
        file, path = self._shards[shard].file, self._store.location(shard)
        message = str(error)
        if not message.startswith(path):
            message = str(damaged(path, in_shard, message))
        if self._options.on_corrupt_record == "fatal":
            raise DamagedRecordError(f"{message} or set data.on_corrupt_record=mask") from None
        if (file, in_shard) not in self.damage:
            self.damage[file, in_shard] = message
            _LOG.warning("masked a damaged record: %s", message)

    def _in_shard(self, number: int) -> tuple[int, int]:
        """Returns the number of the shard, and the number of the record in that shard."""
        # Called for every record: bisect takes a tenth of the time of np.searchsorted.
        shard = bisect.bisect_right(self._shard_starts, number) - 1
        return shard, number - self._shard_starts[shard]
