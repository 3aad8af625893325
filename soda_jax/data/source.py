"""A source: one data set under its views, cut into windows that are found through the index."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.data.manifest import SPLITS, Manifest
from soda_jax.data.reading import damaged
from soda_jax.data.records import (
    FIRST,
    LAST,
    OPENS,
    TEXT,
    DamagedRecordError,
    decode_record,
    read_header,
)
from soda_jax.data.rendering import Renderer
from soda_jax.data.shards import ShardIndex, document_hash
from soda_jax.data.splitting import join_records
from soda_jax.data.storage.modes import Storage
from soda_jax.errors import UserError
from soda_jax.tokens.documents import Utterance, View

_LOG = logging.getLogger(__name__)
_PREFETCHED_DOCUMENTS = 32


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """Options of a source.

    Attributes:
      views: one view, or text-first and audio-first; the source is the data set under the first view
        followed by the data set under the second.
      denied: ids of documents that are excluded.
      masked: (shard file, record) of records whose loss is masked without reading them; the file is
        "train/shard-…", "validation/shard-…", or the file name without a split, which applies to the
        split that is read.
      on_damage: "fatal" or "mask", for a record that cannot be read.
    """

    views: tuple[View, ...]
    denied: frozenset[str] = frozenset()
    masked: frozenset[tuple[str, int]] = frozenset()
    on_damage: str = "fatal"


class Source:
    """The tokens of a split of a data set under its views, as one sequence.

    Attributes:
      name: name in the config.
      manifest: manifest of the generation that is read.
      record_starts: first token of each record in rendered order, one view after the other, and the
        length of the sequence, int64 `[views · records + 1]`.
      tokens: length of the sequence.
      windows: number of whole windows.
      tail_tokens: number of tokens after the last whole window, which are dropped.
      denied_documents: number of excluded documents.
      masked_records: number of records that the config masks.
      damage: message by (shard file, record) for the records that were found damaged and masked.
      prefetches: whether `prefetch` has an effect.
    """

    def __init__(
        self,
        name: str,
        directory: str | Path,
        manifest: Manifest,
        split: str,
        sequence_length: int,
        options: SourceOptions,
        storage: Storage,
    ):
        """Opens the shards of the split and reads their indexes.

        Raises:
          UserError: if the split is empty or shorter than one window, a masked record is not in it, or
            an index is damaged or does not match the manifest.
        """
        self.name, self.manifest = name, manifest
        self._split, self._options, self._length = split, options, sequence_length
        self._shards = manifest.splits.get(split, ())
        if not self._shards:
            raise UserError(f"source {name}: {directory} has no {split} split; tokenize more data")
        self._store, indexes = storage.open(name, directory, split, self._shards)
        self._check(indexes)
        self._index = ShardIndex.joined(indexes)
        self.prefetches = self._store.prefetches
        self._shard_starts = np.cumsum([0, *(shard.records for shard in self._shards)])
        self._masked = self._find_masked()
        self.masked_records = len(self._masked)
        self.damage: dict[tuple[str, int], str] = {}
        self._renderers = [Renderer(manifest.layout, view) for view in options.views]
        kept = self._kept_records()
        self._order, lengths = zip(
            *(self._rendered(renderer, kept) for renderer in self._renderers), strict=True
        )
        self.record_starts = np.concatenate(
            [[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)]
        )
        self.tokens = int(self.record_starts[-1])
        self.windows, self.tail_tokens = divmod(self.tokens, sequence_length)
        if not self.windows:
            raise UserError(
                f"source {name}: the {split} split of {directory} has {self.tokens} tokens, less "
                f"than one window of {sequence_length}; shorten sequence_length or add data"
            )

    def _check(self, indexes: Sequence[ShardIndex]) -> None:
        for number, (shard, index) in enumerate(zip(self._shards, indexes, strict=True)):
            if len(index.flags) != shard.records or len(index.document_hashes) != shard.documents:
                raise UserError(
                    f"{self._store.location(number)}: its index has {len(index.flags)} records, the "
                    f"manifest has {shard.records}; restore the data set"
                )

    def _find_masked(self) -> frozenset[int]:
        numbers = {shard.file: number for number, shard in enumerate(self._shards)}
        found = set()
        for file, record in self._options.masked:
            split, _, name = file.rpartition("/")
            if split in SPLITS and split != self._split:
                continue  # one file may list the damaged records of all splits
            known = split in ("", self._split) and name in numbers
            if not known or not 0 <= record < self._shards[numbers[name]].records:
                raise UserError(f"source {self.name}: masked record {file} {record} does not exist")
            found.add(int(self._shard_starts[numbers[name]]) + record)
        return frozenset(found)

    def _kept_records(self) -> np.ndarray:
        """Returns whether the document of each record is not denied, bool `[records]`."""
        hashes = {document_hash(identifier) for identifier in self._options.denied}
        denied = np.isin(self._index.document_hashes, np.array(sorted(hashes), np.uint64))
        self.denied_documents = int(denied.sum())
        document = np.cumsum((self._index.flags & FIRST) > 0) - 1
        return ~denied[document]

    def _rendered(self, renderer: Renderer, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns record numbers in rendered order and their token counts, both int64 `[records]`."""
        index, part = self._index, self._index.part
        order = rendered_order(part, index.flags, renderer.view.order)
        columns = (part, index.flags, index.utterances, index.text_tokens, index.frames)
        lengths = renderer.lengths(*columns)[order]
        # The order changes only within a document: BOS and EOS keep their positions.
        lengths += ((index.flags & FIRST) > 0).astype(np.int64) + ((index.flags & LAST) > 0)
        return order, lengths * kept

    def read(self, start: int, out: np.ndarray) -> list[tuple[int, int]]:
        """Writes tokens [start, start + len(out)) of the source into `out`, int32.

        Returns:
          The ranges (first, last) of `out` that belong to masked or damaged records. They are filled
          with EOS, so that no other token attends to them.

        Raises:
          DamagedRecordError: for a record that cannot be read, unless the policy is "mask".
        """
        holes: list[tuple[int, int]] = []
        stop = start + len(out)
        position = int(np.searchsorted(self.record_starts, start, side="right")) - 1
        begin = int(self.record_starts[position])
        while begin < stop:
            end = int(self.record_starts[position + 1])
            if end > begin:
                first, last = max(start, begin), min(stop, end)
                piece = out[first - start : last - start]
                if not self._render(position, first - begin, last - begin, piece):
                    piece[:] = self.manifest.layout.eos
                    holes.append((first - start, last - start))
            position, begin = position + 1, end
        return holes

    def prefetch(self, start: int, stop: int) -> Sequence[Any]:
        """Requests the records of tokens [start, stop); keep the result until they have been read."""
        first = int(np.searchsorted(self.record_starts, start, side="right")) - 1
        last = int(np.searchsorted(self.record_starts, stop, side="left"))
        positions = np.arange(first, last)
        # The records of denied documents have no tokens.
        positions = positions[np.diff(self.record_starts[first : last + 1]) > 0]
        records = len(self._index.flags)
        numbers = [int(self._order[p // records][p % records]) for p in positions.tolist()]
        return self._store.prefetch(self._in_shard(n) for n in numbers if n not in self._masked)

    def _in_shard(self, number: int) -> tuple[int, int]:
        """Returns the shard of a record of the split, and its number in the shard."""
        shard = int(np.searchsorted(self._shard_starts, number, side="right")) - 1
        return shard, number - int(self._shard_starts[shard])

    def _render(self, position: int, first: int, last: int, out: np.ndarray) -> bool:
        """Writes tokens [first, last) of the record at a position; False if it is masked or damaged."""
        view, position = divmod(position, len(self._index.flags))
        number = int(self._order[view][position])
        if number in self._masked:
            return False
        shard, in_shard = self._in_shard(number)
        try:
            record = self.read_record(shard, in_shard)
            header = read_header(record, self.manifest.layout)
            index = self._index
            found = (header.flags, header.utterances, header.text_tokens, header.frames)
            stated = (index.flags, index.utterances, index.text_tokens, index.frames)
            if found != tuple(int(column[number]) for column in stated):
                raise DamagedRecordError("its counts differ from the index")
        except DamagedRecordError as error:
            self.report_damage(shard, in_shard, error)
            return False
        flags = int(self._index.flags[position])
        begins, ends = bool(flags & FIRST), bool(flags & LAST)
        self._renderers[view].tokens(record, header, begins, ends, first, last, out)
        return True

    def read_record(self, shard: int, number: int) -> bytes:
        """Returns the bytes of a record; DamagedRecordError if it cannot be read.

        If the shards are in a remote store that cannot be read: StoreError, under any policy.
        """
        return self._store.read(shard, number)

    def read_document(
        self, shard: int, first: int, last: int
    ) -> tuple[str, list[Utterance]] | None:
        """Reads a document, given by its entry in `stored_documents`.

        Returns:
          Its id and utterances; None if one of its records is damaged and the policy is "mask".

        Raises:
          DamagedRecordError: if a record is damaged and the policy is "fatal".
        """
        records = []
        for number in range(first, last):
            try:
                record = self.read_record(shard, number)
                records.append(decode_record(record, self.manifest.layout))
            except DamagedRecordError as error:
                self.report_damage(shard, number, error)
        if len(records) < last - first:
            return None
        return records[0].document_id, join_records(records)

    def report_damage(self, shard: int, number: int, error: DamagedRecordError) -> None:
        """Applies the policy to a damaged record: raises an error, or stores and logs it once."""
        file = self._shards[shard].file
        path = self._store.location(shard)
        message = str(error)
        if not message.startswith(path):
            message = str(damaged(path, number, message))
        if self._options.on_damage == "fatal":
            raise DamagedRecordError(f"{message} or set data.damaged=mask") from None
        if (file, number) not in self.damage:
            self.damage[file, number] = message
            _LOG.warning("masked: %s", message)

    def prefetched_documents(self) -> Iterator[tuple[int, int, int]]:
        """Yields `stored_documents`; requests the records of a group of documents at once."""
        stored = self.stored_documents()
        for begin in range(0, len(stored), _PREFETCHED_DOCUMENTS):
            group = stored[begin : begin + _PREFETCHED_DOCUMENTS]
            prefetched = self._store.prefetch(
                (shard, number) for shard, first, last in group for number in range(first, last)
            )
            yield from group
            del prefetched

    def stored_documents(self) -> list[tuple[int, int, int]]:
        """Returns (shard, first record, last record + 1) of documents without denied or masked records."""
        firsts = np.flatnonzero(self._index.flags & FIRST)
        lasts = np.flatnonzero(self._index.flags & LAST) + 1
        masked = np.searchsorted(firsts, sorted(self._masked), side="right") - 1
        kept = self._kept_records()[firsts]
        kept[masked.astype(np.int64)] = False
        shards = np.searchsorted(self._shard_starts, firsts, side="right") - 1
        starts = self._shard_starts[shards]
        rows: Sequence[tuple[int, int, int]] = np.stack(
            [shards, firsts - starts, lasts - starts], axis=1
        )[kept].tolist()
        return [(shard, first, last) for shard, first, last in rows]


def rendered_order(part: np.ndarray, flags: np.ndarray, order: str) -> np.ndarray:
    """Returns the number of the record at each position under an order of modalities.

    Audio-first moves only the records of an utterance that is stored in pieces: its audio before its text.

    Args:
      part: kind of each record, `[records]`.
      flags: flags of each record, `[records]`.
      order: "text_first" (as stored) or "audio_first".

    Returns:
      int64 `[records]`, a permutation.
    """
    records = np.arange(len(part))
    pieces = np.flatnonzero(part != 0)
    if order == "text_first" or not len(pieces):
        return records
    # An utterance starts where its text opens; a text-only document has no audio to move.
    is_text = part[pieces] == TEXT
    opens = is_text & ((flags[pieces] & (OPENS | FIRST)) > 0)
    records[pieces] = pieces[np.lexsort((is_text, np.cumsum(opens)))]
    return records
