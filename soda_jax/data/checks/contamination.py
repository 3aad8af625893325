"""Utterances of an evaluation set that stand in training data, by document id and by transcript.

LibriSpeech, MLS and LibriVox share recordings, and captions of one talk are published more than once. An
utterance counts as found where a training document holds at least 70% of its 8-grams of words; with the
same n and share PaLM (arXiv 2204.02311, section 8) was checked. Here they must lie in one document, so that
the place can be named and denied: turns of phrase from all over a corpus are counted apart. Utterances of
fewer words are compared as a whole, and deny nothing: a "thank you" stands everywhere.

The training data is read once, document by document; only the n-grams of the evaluation set are held.
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
    """What `find_contamination` found.

    Attributes:
      ngram: words of an n-gram.
      share: the share asked for.
      utterances: all utterances of the evaluation set, in its order.
      same_ids: documents of the evaluation set whose id is also that of a training document.
      denied: ids of the training documents to leave out: `same_ids`, and those that hold the share of an
        utterance of at least `ngram` words.
      train_documents: how many documents were read.
      train_utterances: how many utterances they have.
      damaged_records: records of either set that could not be read.
    """

    ngram: int
    share: float
    utterances: list[Found]
    same_ids: list[str]
    denied: list[str]
    train_documents: int
    train_utterances: int
    damaged_records: int

    def long(self) -> list[Found]:
        """Utterances that have n-grams."""
        return [found for found in self.utterances if found.words >= self.ngram]

    def short(self) -> list[Found]:
        """Utterances with fewer words, but at least one."""
        return [found for found in self.utterances if 0 < found.words < self.ngram]

    def matches(self) -> list[Found]:
        """Utterances that stand in the training data, the largest share first."""
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
    """Looks for the utterances of one data set in another.

    Args:
      train: data set whose train split is read; codec and tokenizer may be other ones.
      evaluation: data set of which both splits are looked for; the validation split if it is `train` itself.
      ngram: words of an n-gram.
      share: from which share of its n-grams in one document an utterance is found, above 0 to 1.
      generation: of `train`, -1 for the newest.

    Raises:
      UserError: for a value out of range, a folder that is no data set, or an evaluation set without
        utterances.
      DamagedRecordError: if a shard cannot be opened.
    """
    if ngram < 1:
        raise UserError(f"--ngram={ngram} must be 1 or more")
    if not 0 < share <= 1:
        raise UserError(f"--share={share} must lie above 0 and not above 1")
    same = Path(train).resolve() == Path(evaluation).resolve()
    wanted = _Reader(evaluation, SPLITS[1:] if same else SPLITS, generation if same else -1)
    utterances = [
        Found(name, number, text, len(words(text)))
        for name, texts in wanted.documents("reading the evaluation set")
        for number, text in enumerate(texts)
    ]
    if not utterances:
        raise UserError(f"{evaluation} has no utterances to look for: name a data set with content")
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
        list(search.denied),
        search.documents,
        search.spoken,
        wanted.damaged + reader.damaged,
    )


class _Reader:
    """The transcripts of a data set, document by document."""

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
        """Yields (document id, transcripts); a damaged record is counted and left out."""
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
                        texts[-1] += record.utterances[0].text  # one utterance in pieces
                    elif record.part != "audio":
                        texts += [utterance.text for utterance in record.utterances]
                if texts:
                    yield name, texts
