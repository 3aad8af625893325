"""Opens the data mixture of a config, with random access to its windows and batches."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from soda_jax.data import config as data_config
from soda_jax.data.format.manifest import Manifest
from soda_jax.data.legal import window_sets
from soda_jax.data.mixture import InOrder, Mixture, normalized_weights
from soda_jax.data.source import Source
from soda_jax.data.split import Split
from soda_jax.data.storage.modes import Storage
from soda_jax.data.windows import Batch, annotate, empty_batch
from soda_jax.errors import UserError
from soda_jax.schema import DataConfig, parse
from soda_jax.tokens.documents import Utterance

_DIGEST_VERSION = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Document:
    """A complete stored document.

    Attributes:
      source: name of the source that contains the document.
      document_id: id of the document.
      utterances: utterances in order, with text, text ids and codes.
    """

    source: str
    document_id: str
    utterances: list[Utterance]


class Dataset:
    """Random access to the windows of a mixture; window k depends only on data, config and k.

    Attributes:
      config: the config with the generation of every source, so that a resumed run reads the same
        data after an append.
      source_names: names of the sources; `Batch.source` contains indices into this tuple.
      sources: one `Source` per name, in the same order.
      weights: weight of each source by name; the weights sum to 1.
      layout: the vocabulary layout, which all sources share.
      codec: the codec entry in the manifests of the speech sources; None without speech.
      front_end: tokenizer, codec and layout, which all sources share.
      sequence_length: tokens per window.
      windows: number of windows in one pass; None for the endless mixture.
      digest: a hash of the data and the settings that determine the windows, except `one_pass`; 64
        hexadecimal digits.
      storage: reads the shards; does not affect the windows.
      legal_sets: whether batches have `legal_set` and `full_offset`.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str,
        *,
        one_pass: bool,
        shorten: bool = False,
        legal_sets: bool = False,
    ):
        """Opens the data sets; see `make_dataset` for the arguments."""
        self.split, self.legal_sets = split, legal_sets
        self.weights = normalized_weights({n: s.weight for n, s in config.sources.items()})
        self.source_names: tuple[str, ...] = tuple(config.sources)
        self.config, manifests = _pin_generations(config)
        agreed = _check_agreement(manifests)
        self.front_end, self.layout, self.codec = agreed.front_end, agreed.layout, agreed.codec
        self.storage = Storage(config)
        self._options = {
            name: data_config.split_options(source, name, config.on_corrupt_record)
            for name, source in self.config.sources.items()
        }
        self.sequence_length = config.sequence_length
        self.sources = self._open_sources(manifests)
        if shorten:
            self.sequence_length = min([config.sequence_length, *(s.tokens for s in self.sources)])
            self.sources = tuple(
                Source(s.split, s.views, self.sequence_length) for s in self.sources
            )
        for source in self.sources:
            if not source.windows:
                raise UserError(
                    f"source {source.name}: the {split} split of {source.split.directory} has "
                    f"{source.tokens} tokens, less than one window of {self.sequence_length}; reduce "
                    "data.sequence_length or add data"
                )
        counts = [source.windows for source in self.sources]
        self.windows = sum(counts) if one_pass else None
        self._order: Mixture | InOrder = InOrder(counts)
        if not one_pass:
            weights = list(self.weights.values())
            self._order = Mixture(self.source_names, counts, weights, config.seed)
        self.digest = self._make_digest()

    def _open_sources(self, manifests: Mapping[str, Manifest]) -> tuple[Source, ...]:
        sources = []
        for name, manifest in manifests.items():
            source = self.config.sources[name]
            split = Split(
                name, source.path, manifest, self.split, self._options[name], self.storage
            )
            views = data_config.views(source, manifest, name)
            sources.append(Source(split, views, self.sequence_length))
        return tuple(sources)

    @property
    def codebooks(self) -> tuple[int, ...]:
        """Number of codebooks in the stream of each source; see `Source`."""
        return tuple(source.codebooks for source in self.sources)

    def locate(self, k: int) -> tuple[int, int] | None:
        """Returns (source index, window index in that source) of window k; None after one pass."""
        return self._order[k]

    def window(self, k: int) -> Batch:
        """Returns window k of the stream as a batch of one row; see `batch`."""
        return self.batch(k, range(1))

    def batch(self, k: int, rows: Sequence[int]) -> Batch:
        """Returns the windows k + r for each r in `rows`, stacked in that order.

        The global batch of size B at window k is `batch(k, range(B))`; each process reads the rows
        that its devices need. Rows after the end of a pass are masked in the loss.

        Raises:
          DamagedRecordError: if a record cannot be read and `on_corrupt_record` is "fatal".
          StoreError: if a remote store cannot be read, for any value of `on_corrupt_record`.
        """
        length = self.sequence_length
        batch = empty_batch(len(rows), length, self.legal_sets)
        windows = [self.locate(k + offset) for offset in rows]
        prefetched = [
            self.sources[number].prefetch(window * length, (window + 1) * length)
            for number, window in filter(None, windows)
            if self.sources[number].split.prefetches
        ]
        for row, found in enumerate(windows):
            if found is not None:
                number, window = found
                holes = self.sources[number].read(window * length, batch.tokens[row])
                batch.source[row] = number
                annotate(batch, row, self.layout, holes)
                if batch.legal_set is not None:
                    source, tokens = self.sources[number], batch.tokens[row]
                    window_sets(source, window * length, tokens, holes, batch.legal_set[row])
        if batch.full_offset is not None:
            batch.full_offset[:] = _hashes(self.config.seed, k + np.array(rows))
        del prefetched  # referenced until here, so that the records stay in memory
        return batch

    def balanced_rows(self, k: int, size: int, groups: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns the window of each row of a batch such that groups of rows have about equal text.

        The result depends only on the index and the arguments, so all processes compute the same, and
        none reads rows of another.

        Args:
          k: number of the first window of the batch.
          size: windows in the batch.
          groups: disjoint rows that one device processes together; they cover the batch.

        Returns:
          int `[size]`: row r of the batch is window k + result[r].
        """
        length = self.sequence_length
        counts = []
        for offset in range(size):
            found = self.locate(k + offset)
            if found is None:
                counts.append(0.0)
            else:
                source, window = found
                start = window * length
                counts.append(self.sources[source].text_tokens(start, start + length))
        totals = np.zeros(len(groups))
        free = [list(reversed(group)) for group in groups]
        rows = np.zeros(size, np.int64)
        # The window with most text is assigned to the group with least text that has a free row.
        for offset in np.argsort(-np.array(counts), kind="stable").tolist():
            group = min((n for n, rest in enumerate(free) if rest), key=lambda n: totals[n])
            totals[group] += counts[offset]
            rows[free[group].pop()] = offset
        return rows

    def damage(self) -> list[str]:
        """Returns a message for every damaged record that was found and masked so far."""
        return [
            source.split.damage[key]
            for source in self.sources
            for key in sorted(source.split.damage)
        ]

    def summary(self) -> dict[str, dict[str, Any]]:
        """Returns the counts (see `Source`) and the weight of each source, by name."""
        return {
            source.name: {
                "windows": source.windows,
                "tokens": source.tokens,
                "tail_tokens": source.tail_tokens,
                "excluded_documents": source.split.excluded_documents,
                "masked_records": len(source.split.masked),
                "weight": self.weights[source.name],
            }
            for source in self.sources
        }

    def _make_digest(self) -> str:
        """Returns the hash of data and settings, without paths and `on_corrupt_record`."""
        sources = {
            source.name: {
                "manifest": source.manifest.digest,
                "weight": self.weights[source.name],
                "views": [dataclasses.asdict(view) for view in source.views],
                "exclude_documents": sorted(self._options[source.name].exclude_documents),
                "mask_records": sorted(self._options[source.name].mask_records),
            }
            for source in self.sources
        }
        value = {
            "version": _DIGEST_VERSION,
            "split": self.split,
            "sequence_length": self.sequence_length,
            "seed": self.config.seed,
            "sources": sources,
        }
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def make_dataset(
    config: DataConfig | Mapping[str, Any],
    split: str = "train",
    *,
    one_pass: bool = False,
    shorten: bool = False,
    legal_sets: bool = False,
) -> Dataset:
    """Opens the data sets of a config.

    Args:
      config: the `data` settings of a run, or a mapping with their keys.
      split: "train" or "validation".
      one_pass: False for the endless, shuffled, weighted mixture of training; True for every window
        of every source once, in stored order, for evaluation.
      shorten: reduce the sequence length to the length of the shortest source instead of raising an
        error.
      legal_sets: whether batches have `legal_set` and `full_offset`, see `Batch`.

    Raises:
      UserError: if the config, a weight, a manifest or an index is invalid, sources differ in
        tokenizer, codec or layout, or a source is shorter than one window.
    """
    settings = parse(DataConfig, config, "data")
    return Dataset(settings, split, one_pass=one_pass, shorten=shorten, legal_sets=legal_sets)


def open_splits(
    config: DataConfig | Mapping[str, Any], split: str = "validation"
) -> tuple[Split, ...]:
    """Opens a split of every source of a config, for reading whole documents.

    Raises:
      UserError: as `make_dataset`, except that sources may be shorter than a window.
    """
    config, manifests = _pin_generations(parse(DataConfig, config, "data"))
    _check_agreement(manifests)
    storage = Storage(config)
    return tuple(
        Split(
            name,
            source.path,
            manifests[name],
            split,
            data_config.split_options(source, name, config.on_corrupt_record),
            storage,
        )
        for name, source in config.sources.items()
    )


def documents(splits: Sequence[Split]) -> Iterator[Document]:
    """Yields whole documents, split by split, in stored order.

    Excluded documents and documents with a record in `mask_records` are skipped. A document that
    several sources read from one data set is yielded once. A document with a damaged record raises
    DamagedRecordError or, if `on_corrupt_record` is "mask", is skipped with a warning.
    """
    digests = collections.Counter(split.manifest.digest for split in splits)
    yielded: set[tuple[str, int]] = set()
    for split in splits:
        shared = digests[split.manifest.digest] > 1
        for first, last in split.prefetched_documents():
            identity = (split.manifest.digest, first)
            if identity in yielded:
                continue
            document = split.read_document(first, last)
            if document is not None:
                if shared:
                    yielded.add(identity)
                yield Document(split.name, *document)


def _hashes(seed: int, windows: np.ndarray) -> np.ndarray:
    """Returns a pseudo-random number for each window of the stream, int32 ≥ 0 `[windows]`.

    The mixing function is that of SplitMix64 (Steele et al., 2014, doi:10.1145/2660193.2660195).
    """
    with np.errstate(over="ignore"):
        x = windows.astype(np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((x ^ (x >> np.uint64(31))) >> np.uint64(33)).astype(np.int32)


def _pin_generations(config: DataConfig) -> tuple[DataConfig, dict[str, Manifest]]:
    """Returns the config with the generation of every source, and the manifests by source."""
    manifests = {
        name: Manifest.load(source.path, source.generation)
        for name, source in config.sources.items()
    }
    sources = {
        name: dataclasses.replace(source, generation=manifests[name].generation)
        for name, source in config.sources.items()
    }
    return dataclasses.replace(config, sources=sources), manifests


def _check_agreement(manifests: Mapping[str, Manifest]) -> Manifest:
    """Returns the first manifest with a codec, if any, else the first; compares the front ends.

    Raises:
      UserError: if the tokenizer, codec or layout of two sources differs.
    """
    first = next((name for name in manifests if manifests[name].codec), next(iter(manifests)))
    for name, manifest in manifests.items():
        manifest.front_end.check_same(
            manifests[first].front_end, f"source {name}", f"source {first}"
        )
    return manifests[first]
