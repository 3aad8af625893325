"""A search for transcripts by their n-grams of words, one training document after the other."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

_APOSTROPHES = re.compile("['’‘`´]")
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a transcript: lower case, apostrophes deleted, other punctuation taken for spaces."""
    return _WORD.findall(_APOSTROPHES.sub("", text.lower()))


@dataclasses.dataclass
class Found:
    """One utterance of the evaluation set and what the training data has of it.

    Attributes:
      document: its document.
      utterance: its number there, from 0.
      text: its transcript.
      words: words of the transcript.
      share: largest share of its n-grams that one training document holds; 1 where a shorter utterance is
        found whole.
      share_anywhere: share of its n-grams that all training documents together hold.
      train_document: the document of `share`; None if nothing was found.
      train_utterance: number of the utterance there in which the match begins.
      train_documents: how many training documents hold the share asked for.
    """

    document: str
    utterance: int
    text: str
    words: int
    share: float = 0.0
    share_anywhere: float = 0.0
    train_document: str | None = None
    train_utterance: int | None = None
    train_documents: int = 0


class NgramSearch:
    """The n-grams of the evaluation set, and what was found of them so far.

    Attributes:
      same_ids: ids that documents of both sets have, as keys.
      denied: ids of the training documents to leave out, as keys.
      documents: training documents compared so far.
      spoken: utterances of these.
    """

    def __init__(self, utterances: list[Found], ngram: int, share: float):
        """Args: utterances: filled in as matches are met. ngram: words. share: above 0 to 1."""
        self._utterances, self._ngram, self._share = utterances, ngram, share
        spoken = [words(found.text) for found in utterances]
        self._vocabulary = {
            word: number
            for number, word in enumerate(dict.fromkeys(itertools.chain(*spoken)), start=1)
        }
        # An n-gram is known by the sum of its words' random numbers, each times one of its place, mod 2^64.
        rng = np.random.default_rng(0)
        numbers = rng.integers(1, 2**63, len(self._vocabulary) + 1, np.uint64)
        self._numbers = numbers * 2 + 1
        self._places = rng.integers(1, 2**63, ngram, np.uint64) * 2 + 1
        pairs: dict[tuple[int, int], None] = {}
        self._short: dict[str, list[int]] = {}
        for number, line in enumerate(spoken):
            if len(line) >= ngram:
                _, keys = self._grams(self._ids(line))
                pairs.update(dict.fromkeys((int(key), number) for key in keys))
            elif line:
                self._short.setdefault(" ".join(line), []).append(number)
        self._keys = np.array(sorted({key for key, _ in pairs}), np.uint64)
        place = {key: at for at, key in enumerate(self._keys.tolist())}
        self._holders: list[list[int]] = [[] for _ in place]
        for key, number in pairs:
            self._holders[place[key]].append(number)
        self._totals = np.bincount([number for _, number in pairs], minlength=len(utterances))
        self._seen = np.zeros(len(self._keys), bool)
        self._wanted_ids = {found.document for found in utterances}
        self.same_ids: dict[str, None] = {}
        self.denied: dict[str, None] = {}
        self.documents = self.spoken = 0

    def compare(self, name: str, texts: Sequence[str]) -> None:
        """Looks for everything in one training document."""
        self.documents += 1
        self.spoken += len(texts)
        if name in self._wanted_ids:
            self.same_ids[name] = self.denied[name] = None
        lines = [words(text) for text in texts]
        self._compare_short(name, lines)
        # Across utterances: the sets cut the same recording at other places.
        windows, keys = self._grams(self._ids(list(itertools.chain(*lines))))
        if len(self._keys) and len(keys):
            at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            hits = self._keys[at] == keys
            if hits.any():
                starts = np.cumsum([0, *map(len, lines)])[:-1]
                self._count(name, at[hits], windows[hits], starts)

    def _compare_short(self, name: str, lines: Sequence[list[str]]) -> None:
        met = set()
        for place, line in enumerate(lines):
            if len(line) >= self._ngram or not line:
                continue
            for number in self._short.get(" ".join(line), ()):
                found = self._utterances[number]
                if found.train_document is None:
                    found.train_document, found.train_utterance = name, place
                found.share = found.share_anywhere = 1.0
                met.add(number)
        for number in met:
            self._utterances[number].train_documents += 1

    def _count(self, name: str, keys: np.ndarray, windows: np.ndarray, starts: np.ndarray) -> None:
        found_keys, first = np.unique(keys, return_index=True)
        self._seen[found_keys] = True
        met: dict[int, tuple[int, int]] = {}  # utterance: (n-grams, first word)
        for key, window in zip(found_keys.tolist(), windows[first].tolist(), strict=True):
            for number in self._holders[key]:
                count, begins = met.get(number, (0, window))
                met[number] = (count + 1, min(begins, window))
        for number, (count, begins) in met.items():
            found, share = self._utterances[number], count / int(self._totals[number])
            if share > found.share:
                found.share, found.train_document = share, name
                found.train_utterance = int(np.searchsorted(starts, begins, side="right")) - 1
            if share >= self._share:
                found.train_documents += 1
                self.denied[name] = None

    def finish(self) -> None:
        """Works out the shares over all documents."""
        seen = np.zeros(len(self._utterances), np.int64)
        for key in np.flatnonzero(self._seen).tolist():
            seen[self._holders[key]] += 1
        for number in np.flatnonzero(self._totals).tolist():
            found = self._utterances[number]
            found.share_anywhere = int(seen[number]) / int(self._totals[number])

    def _ids(self, line: Sequence[str]) -> np.ndarray:
        """Numbers of the words, int64; 0 for words that the evaluation set does not have."""
        return np.fromiter((self._vocabulary.get(word, 0) for word in line), np.int64, len(line))

    def _grams(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(first word, key) of each n-gram without a foreign word, int64 and uint64."""
        count = len(ids) - self._ngram + 1
        if count <= 0:
            return np.zeros(0, np.int64), np.zeros(0, np.uint64)
        keys, known = np.zeros(count, np.uint64), np.ones(count, bool)
        for place, factor in enumerate(self._places):
            part = ids[place : place + count]
            keys += self._numbers[part] * factor
            known &= part > 0
        return np.flatnonzero(known), keys[known]
