"""Finds utterances of an evaluation set in the training data, by document id and transcript.

LibriSpeech, MLS and LibriVox share recordings, and captions of one talk are published more than
once. An utterance is contaminated if one training document contains at least 70% of its 8-grams of
words. 70% and 8 are from PaLM (arXiv 2204.02311, section 8), which counts an n-gram if any document
contains it; the share by this rule is reported separately. An utterance of fewer than 8 words
is contaminated if it is equal to a whole training utterance. Such a match excludes no document,
because many documents contain "thank you".

The training data is read once, document by document; only the evaluation set and its n-grams are
kept in memory.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from soda_jax.data.checks.ngram_search import Found, NgramSearch, words
from soda_jax.data.format.manifest import SPLITS, Manifest
from soda_jax.data.format.reading import read_records
from soda_jax.data.format.records import DamagedRecordError
from soda_jax.errors import UserError
from soda_jax.progress import progress

NGRAM = 8
SHARE = 0.7


@dataclasses.dataclass(frozen=True)
class Contamination:
    """The result of `find_contamination`.

    Attributes:
      ngram: words per n-gram.
      share: minimum share of an utterance's n-grams that one training document must contain.
      utterances: all utterances of the evaluation set, in stored order.
      same_ids: ids of the documents that are in both sets.
      excluded: ids of the training documents to exclude, which are `same_ids` and the documents
        that contain at least `share` of the n-grams of an utterance.
      train_documents: number of training documents.
      train_utterances: number of utterances in the training documents.
      damaged_records: number of unreadable records, the sum over the two sets.
    """

    ngram: int
    share: float
    utterances: list[Found]
    same_ids: list[str]
    excluded: list[str]
    train_documents: int
    train_utterances: int
    damaged_records: int

    def long(self) -> list[Found]:
        """Returns the utterances of at least `ngram` words."""
        return [found for found in self.utterances if found.words >= self.ngram]

    def short(self) -> list[Found]:
        """Returns the utterances of at least one and fewer than `ngram` words."""
        return [found for found in self.utterances if 0 < found.words < self.ngram]

    def matches(self) -> list[Found]:
        """Returns the contaminated utterances, largest share first."""
        kept = [found for found in self.utterances if found.train_documents]
        return sorted(kept, key=lambda found: (-found.share, -found.words))


def find_contamination(
    train: str | Path,
    evaluation: str | Path,
    *,
    ngram: int = NGRAM,
    share: float = SHARE,
    generation: int = -1,
) -> Contamination:
    """Searches training data for the utterances of an evaluation set.

    Args:
      train: data set whose train split is searched; its codec and tokenizer may differ from those
        of `evaluation`.
      evaluation: data set whose utterances are searched for; only its validation split if it is the
        same folder as `train`.
      ngram: words per n-gram.
      share: minimum share of an utterance's n-grams that one training document must contain, above
        0 and at most 1.
      generation: generation of `train`, -1 for the newest.

    Raises:
      UserError: if an argument is out of range, a folder contains no data set, or the evaluation
        set has no utterances.
      DamagedRecordError: if a shard cannot be opened.
    """
    if ngram < 1:
        raise UserError(f"--ngram={ngram} must be 1 or more")
    if not 0 < share <= 1:
        raise UserError(f"--share={share} must be above 0 and at most 1")
    same = Path(train).resolve() == Path(evaluation).resolve()
    wanted = _Reader(evaluation, SPLITS[1:] if same else SPLITS, generation if same else -1)
    utterances = [
        Found(name, number, text, len(words(text)))
        for name, texts in wanted.documents("reading the evaluation set")
        for number, text in enumerate(texts)
    ]
    if not utterances:
        raise UserError(f"{evaluation} has no utterances; pass a data set that is not empty")
    search = NgramSearch(utterances, ngram, share)
    reader = _Reader(train, SPLITS[:1], generation)
    for name, texts in reader.documents("reading the training data"):
        search.compare(name, texts)
    search.finish()
    return Contamination(
        ngram,
        share,
        utterances,
        list(search.same_ids),
        list(search.excluded),
        search.documents,
        search.train_utterances,
        wanted.damaged + reader.damaged,
    )


class _Reader:
    """Reads the transcripts of a data set, document by document."""

    def __init__(self, directory: str | Path, splits: Sequence[str], generation: int):
        self._manifest = Manifest.load(directory, generation)
        found = self._manifest.splits
        self._shards = [
            (Path(directory) / split / shard.file, shard.records)
            for split in splits
            for shard in found.get(split, ())
        ]
        self.damaged = 0

    def documents(self, label: str) -> Iterator[tuple[str, list[str]]]:
        """Yields (document id, transcripts); a damaged record is counted and skipped."""
        total = sum(records for _, records in self._shards)
        with progress(f"{label}, records", total) as bar:
            for path, _ in self._shards:
                name, texts = "", list[str]()
                for record in read_records(path, self._manifest.layout):
                    bar.advance()
                    if isinstance(record, DamagedRecordError):
                        self.damaged += 1
                        continue
                    if record.document_id != name and texts:
                        yield name, texts
                        texts = []
                    name = record.document_id
                    if record.part == "text" and texts and not record.opens:
                        texts[-1] += record.utterances[0].text  # next piece of the same utterance
                    elif record.part != "audio":
                        texts += [utterance.text for utterance in record.utterances]
                if texts:
                    yield name, texts
