"""Windows and batches by number: the mixture over its sources, ready for a loader."""

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
from soda_jax.data.storage.split import Storage
from soda_jax.data.windows import Batch, annotate, empty_batch
from soda_jax.errors import UserError
from soda_jax.tokens.documents import Utterance
from soda_jax.tokens.vocabulary import VocabularyLayout

_DIGEST_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Document:
    """A stored document, whole.

    Attributes:
      source: name of its source.
      document_id: its id.
      utterances: in order; text, text ids and codes.
    """

    source: str
    document_id: str
    utterances: list[Utterance]


class Dataset:
    """Random access to the windows of a config; the window at k depends on (config, seed, k) alone.

    Attributes:
      config: the config with every default filled in and every generation named; a run that keeps
        it reads the same data after an append.
      source_names: in the order of `Batch.source`.
      sources: a `Source` each.
      weights: by name, summing to 1.
      layout: the vocabulary of all sources.
      codec: what the manifest says of the codec of the speech sources, None if all are text.
      tokenizer_fingerprint: of the text tokenizer of all sources.
      sequence_length: tokens of a window.
      windows: number of windows of one pass (None: the mixture has no end).
      digest: a hash of everything that the windows depend on, 64 hexadecimal digits.
      storage: how the shards are read; of no influence on the windows.
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
        self._places: Mixture | InOrder = InOrder(counts)
        if not one_pass:
            weights = list(self.weights.values())
            self._places = Mixture(self.source_names, counts, weights, self.config["seed"])
        self.digest = self._make_digest(options)

    @property
    def codec_fingerprint(self) -> str | None:
        """Fingerprint of the codec of the speech sources, None if all are text."""
        return self.codec["fingerprint"] if self.codec else None

    def place(self, k: int) -> tuple[int, int] | None:
        """Number of the source and of its window at place k; None behind the end of a single pass."""
        return self._places[k]

    def window(self, k: int) -> Batch:
        """Window k of the stream as a batch of one row; see `batch`."""
        return self.batch(k, range(1))

    def batch(self, k: int, rows: Sequence[int]) -> Batch:
        """The windows k + r for each r in `rows`, stacked in that order.

        The global batch of size B at window count k is `batch(k, range(B))`; a process takes the rows
        that its addressable shards cover. Behind the end of a single pass rows have no loss.

        Raises:
          DamagedRecordError: if a record cannot be read and the policy is "fatal".
          StoreError: if the store of a remote data set cannot be read, whatever the policy.
        """
        length = self.sequence_length
        batch = empty_batch(len(rows), length)
        places = [self.place(k + offset) for offset in rows]
        held = [
            self.sources[number].ahead(window * length, (window + 1) * length)
            for number, window in filter(None, places)
            if self.sources[number].reads_ahead
        ]
        for row, place in enumerate(places):
            if place is not None:
                number, window = place
                holes = self.sources[number].read(window * length, batch.tokens[row])
                batch.source[row] = number
                annotate(batch, row, self.layout, holes)
        del held
        return batch

    def documents(self) -> Iterator[Document]:
        """Whole documents, source by source, in stored order; denied ones are left out.

        A document of a data set that several sources read, in other views, comes once.
        A document with a damaged record raises DamagedRecordError, or under the policy "mask" is
        left out with a warning.
        """
        digests = collections.Counter(source.manifest.digest for source in self.sources)
        given: set[tuple[str, int, int]] = set()
        for source in self.sources:
            shared = digests[source.manifest.digest] > 1
            for shard, first, last in source.documents_ahead():
                place = (source.manifest.digest, shard, first)
                if place in given:
                    continue
                document = source.read_document(shard, first, last)
                if document is not None:
                    if shared:
                        given.add(place)
                    yield Document(source.name, *document)

    def damage(self) -> list[str]:
        """A message for every damaged record met and masked so far."""
        return [source.damage[place] for source in self.sources for place in sorted(source.damage)]

    def summary(self) -> dict[str, dict[str, Any]]:
        """By source: windows, tokens, tail_tokens (dropped), denied_documents, masked_records, weight."""
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
        """Hashes what the windows depend on; where a data set lies and the damage policy do not count."""
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
        of every source once, in stored order, as evaluation wants.

    Raises:
      UserError: if the config, a weight, a manifest or an index is at fault, sources differ in
        layout or codec, or a source is shorter than one window.
    """
    return Dataset(config, split, one_pass=one_pass)


def documents(config: Mapping[str, Any], split: str = "validation") -> Iterator[Document]:
    """Whole documents of a split in stored order, see `Dataset.documents`; windows may be any length."""
    return Dataset({**config, "sequence_length": 2}, split, one_pass=True).documents()


def _same_tokenizer(manifests: Mapping[str, Manifest]) -> str:
    """The tokenizer that all sources share; UserError naming two that differ."""
    (first, reference), *others = manifests.items()
    for name, manifest in others:
        if manifest.tokenizer_fingerprint != reference.tokenizer_fingerprint:
            raise UserError(
                f"source {name} has the tokenizer {manifest.tokenizer_fingerprint}, source {first} "
                f"has {reference.tokenizer_fingerprint}: bring one over with soda retext"
            )
    return reference.tokenizer_fingerprint


def _agree(
    manifests: Mapping[str, Manifest],
) -> tuple[VocabularyLayout, Mapping[str, Any] | None]:
    """The layout and codec that all sources share; UserError naming two that differ."""
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
