"""Windows and batches by number, from the mixture of the sources of a config."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from soda_jax.data import config as data_config
from soda_jax.data.manifest import Manifest, check_compatible
from soda_jax.data.mixture import InOrder, Mixture, normalised_weights
from soda_jax.data.source import Source, SourceOptions
from soda_jax.data.storage.modes import Storage
from soda_jax.data.windows import Batch, annotate, empty_batch
from soda_jax.errors import UserError
from soda_jax.tokens.documents import Utterance
from soda_jax.tokens.vocabulary import VocabularyLayout

_DIGEST_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Document:
    """A complete stored document.

    Attributes:
      source: name of its source.
      document_id: its id.
      utterances: its utterances in order, with text, text ids and codes.
    """

    source: str
    document_id: str
    utterances: list[Utterance]


class Dataset:
    """Random access to the windows of a config; window k depends only on (config, seed, k).

    Attributes:
      config: the config with every default and every generation filled in; a run that keeps it reads
        the same data after an append.
      source_names: names of the sources, in the order of `Batch.source`.
      sources: one `Source` per name.
      weights: weight of each source by name; their sum is 1.
      layout: the vocabulary of all sources.
      codec: the manifest's entry of the codec of the speech sources, None if all are text.
      tokenizer_fingerprint: fingerprint of the text tokenizer of all sources.
      sequence_length: tokens per window.
      windows: number of windows of one pass; None for the endless mixture.
      digest: a hash of everything that the windows depend on, 64 hexadecimal digits.
      storage: reads the shards; it has no influence on the windows.
    """

    def __init__(self, config: Mapping[str, Any], split: str, *, one_pass: bool):
        """See `make_dataset`."""
        self.config, self.split = data_config.complete(config), split
        self.sequence_length: int = self.config["sequence_length"]
        settings = self.config["sources"]
        self.weights = normalised_weights({name: s["weight"] for name, s in settings.items()})
        self.source_names: tuple[str, ...] = tuple(settings)
        manifests = {
            name: Manifest.load(s["path"], s["generation"]) for name, s in settings.items()
        }
        for name, manifest in manifests.items():
            settings[name]["generation"] = manifest.generation
        self.layout, self.codec = _agree(manifests)
        self.tokenizer_fingerprint = _same_tokenizer(manifests)
        self.storage = Storage(self.config)
        options = {
            name: data_config.options(settings[name], manifest, name, self.config["damaged"])
            for name, manifest in manifests.items()
        }
        self.sources = tuple(
            Source(name, settings[name]["path"], manifest, split, self.sequence_length,
                   options[name], self.storage)
            for name, manifest in manifests.items()
        )  # fmt: skip
        counts = [source.windows for source in self.sources]
        self.windows = sum(counts) if one_pass else None
        self._order: Mixture | InOrder = InOrder(counts)
        if not one_pass:
            weights = list(self.weights.values())
            self._order = Mixture(self.source_names, counts, weights, self.config["seed"])
        self.digest = self._make_digest(options)

    @property
    def codec_fingerprint(self) -> str | None:
        """Returns the fingerprint of the codec of the speech sources, None if all are text."""
        return self.codec["fingerprint"] if self.codec else None

    def locate(self, k: int) -> tuple[int, int] | None:
        """Returns the source number and window number of window k; None after the end of one pass."""
        return self._order[k]

    def window(self, k: int) -> Batch:
        """Returns window k of the stream as a batch of one row; see `batch`."""
        return self.batch(k, range(1))

    def batch(self, k: int, rows: Sequence[int]) -> Batch:
        """Returns the windows k + r for each r in `rows`, stacked in that order.

        The global batch of size B at window count k is `batch(k, range(B))`; a process takes the rows
        that its addressable shards cover. Rows after the end of one pass have no loss.

        Raises:
          DamagedRecordError: if a record cannot be read and the policy is "fatal".
          StoreError: if the store of a remote data set cannot be read, under any policy.
        """
        length = self.sequence_length
        batch = empty_batch(len(rows), length)
        windows = [self.locate(k + offset) for offset in rows]
        prefetched = [
            self.sources[number].prefetch(window * length, (window + 1) * length)
            for number, window in filter(None, windows)
            if self.sources[number].prefetches
        ]
        for row, found in enumerate(windows):
            if found is not None:
                number, window = found
                holes = self.sources[number].read(window * length, batch.tokens[row])
                batch.source[row] = number
                annotate(batch, row, self.layout, holes)
        del prefetched  # until here the records stay in memory, whatever the size of the cache
        return batch

    def documents(self) -> Iterator[Document]:
        """Yields whole documents, source by source, in stored order, without the denied ones.

        A document that several sources read from one data set is yielded once.
        A document with a damaged record raises DamagedRecordError; under the policy "mask" it is
        skipped with a warning.
        """
        digests = collections.Counter(source.manifest.digest for source in self.sources)
        yielded: set[tuple[str, int, int]] = set()
        for source in self.sources:
            shared = digests[source.manifest.digest] > 1
            for shard, first, last in source.prefetched_documents():
                identity = (source.manifest.digest, shard, first)
                if identity in yielded:
                    continue
                document = source.read_document(shard, first, last)
                if document is not None:
                    if shared:
                        yielded.add(identity)
                    yield Document(source.name, *document)

    def damage(self) -> list[str]:
        """Returns a message for every damaged record that was found and masked so far."""
        return [source.damage[key] for source in self.sources for key in sorted(source.damage)]

    def summary(self) -> dict[str, dict[str, Any]]:
        """Returns, by source, its counts (see `Source`) and its weight."""
        return {
            source.name: {
                "windows": source.windows,
                "tokens": source.tokens,
                "tail_tokens": source.tail_tokens,
                "denied_documents": source.denied_documents,
                "masked_records": source.masked_records,
                "weight": self.weights[source.name],
            }
            for source in self.sources
        }

    def _make_digest(self, options: Mapping[str, SourceOptions]) -> str:
        """Hashes what the windows depend on; excludes the location of a data set and the damage policy."""
        sources = {
            source.name: {
                "manifest": source.manifest.digest,
                "weight": self.weights[source.name],
                "views": [dataclasses.asdict(view) for view in options[source.name].views],
                "denied": sorted(options[source.name].denied),
                "masked": sorted(options[source.name].masked),
            }
            for source in self.sources
        }
        value = {
            "version": _DIGEST_VERSION,
            "split": self.split,
            "sequence_length": self.sequence_length,
            "seed": self.config["seed"],
            "sources": sources,
        }
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def make_dataset(
    config: Mapping[str, Any], split: str = "train", *, one_pass: bool = False
) -> Dataset:
    """Opens the data sets of a config.

    Args:
      config: the data part of a config, see `soda_jax.data.config`; plain or ml_collections.
      split: "train" or "validation".
      one_pass: False for the endless, shuffled, weighted mixture of training; True for every window
        of every source once, in stored order, for evaluation.

    Raises:
      UserError: if the config, a weight, a manifest or an index is invalid, sources differ in layout
        or codec, or a source is shorter than one window.
    """
    return Dataset(config, split, one_pass=one_pass)


def documents(config: Mapping[str, Any], split: str = "validation") -> Iterator[Document]:
    """Yields the whole documents of a split in stored order, see `Dataset.documents`."""
    return Dataset({**config, "sequence_length": 2}, split, one_pass=True).documents()


def _same_tokenizer(manifests: Mapping[str, Manifest]) -> str:
    """Returns the fingerprint of the tokenizer of all sources; UserError if two sources differ."""
    (first, reference), *others = manifests.items()
    for name, manifest in others:
        if manifest.tokenizer_fingerprint != reference.tokenizer_fingerprint:
            raise UserError(
                f"source {name} has the tokenizer {manifest.tokenizer_fingerprint}, source {first} "
                f"has {reference.tokenizer_fingerprint}: convert one with soda retext"
            )
    return reference.tokenizer_fingerprint


def _agree(
    manifests: Mapping[str, Manifest],
) -> tuple[VocabularyLayout, Mapping[str, Any] | None]:
    """Returns the layout and codec of all sources; UserError if two sources differ."""
    (first, reference), *others = manifests.items()
    codec_of = None if reference.codec is None else first
    for name, manifest in others:
        check_compatible(manifest, reference.layout, name=f"source {name}", other=f"source {first}")
        if manifest.codec is not None and codec_of is not None:
            fingerprint = manifests[codec_of].codec["fingerprint"]  # type: ignore[index]
            check_compatible(
                manifest,
                reference.layout,
                fingerprint,
                name=f"source {name}",
                other=f"source {codec_of}",
            )
        elif manifest.codec is not None:
            codec_of = name
    return reference.layout, manifests[codec_of].codec if codec_of is not None else None
