"""Searches training documents for transcripts by n-grams of words."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

_APOSTROPHES = re.compile("['’‘`´]")
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Returns the words in lower case; removes apostrophes and splits at other punctuation."""
    return _WORD.findall(_APOSTROPHES.sub("", text.lower()))


@dataclasses.dataclass
class Found:
    """An utterance of the evaluation set and its matches in the training data.

    Attributes:
      document: id of the document that contains the utterance.
      utterance: index of the utterance in the document.
      text: transcript of the utterance.
      words: number of words of the transcript.
      share: largest share of the utterance's n-grams that one training document contains. For an
        utterance without n-grams, 1 if it is equal to a training utterance.
      share_anywhere: share of the utterance's n-grams that all training documents together contain.
      train_document: id of the training document for which `share` was found; None without a match.
      train_utterance: index of the utterance of `train_document` in which the match begins.
      train_documents: number of training documents whose share reaches the threshold.
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
    """An index of the n-grams of the evaluation set, with the matches found so far.

    Attributes:
      same_ids: a dict whose keys are the ids of the documents that are in both sets.
      excluded: a dict whose keys are the ids of the training documents to exclude.
      documents: number of training documents compared so far.
      train_utterances: number of utterances in these documents.
    """

    def __init__(self, utterances: list[Found], ngram: int, share: float):
        """Indexes the n-grams of `utterances`; `compare` updates the utterances that match."""
        self._utterances, self._ngram, self._share = utterances, ngram, share
        spoken = [words(found.text) for found in utterances]
        self._vocabulary = {
            word: number
            for number, word in enumerate(dict.fromkeys(itertools.chain(*spoken)), start=1)
        }
        # Hash of an n-gram: sum over positions of number(word) · factor(position), mod 2^64.
        rng = np.random.default_rng(0)
        numbers = rng.integers(1, 2**63, len(self._vocabulary) + 1, np.uint64)
        self._numbers = numbers * 2 + 1
        self._factors = rng.integers(1, 2**63, ngram, np.uint64) * 2 + 1
        pairs: dict[tuple[int, int], None] = {}
        self._short: dict[str, list[int]] = {}
        for number, line in enumerate(spoken):
            if len(line) >= ngram:
                _, keys = self._grams(self._ids(line))
                pairs.update(dict.fromkeys((int(key), number) for key in keys))
            elif line:
                self._short.setdefault(" ".join(line), []).append(number)
        self._keys = np.array(sorted({key for key, _ in pairs}), np.uint64)
        row = {key: number for number, key in enumerate(self._keys.tolist())}
        self._holders: list[list[int]] = [[] for _ in row]
        for key, number in pairs:
            self._holders[row[key]].append(number)
        self._totals = np.bincount([number for _, number in pairs], minlength=len(utterances))
        self._seen = np.zeros(len(self._keys), bool)
        self._wanted_ids = {found.document for found in utterances}
        self.same_ids: dict[str, None] = {}
        self.excluded: dict[str, None] = {}
        self.documents = self.train_utterances = 0

    def compare(self, name: str, texts: Sequence[str]) -> None:
        """Searches one training document."""
        self.documents += 1
        self.train_utterances += len(texts)
        if name in self._wanted_ids:
            self.same_ids[name] = self.excluded[name] = None
        lines = [words(text) for text in texts]
        self._compare_short(name, lines)
        # N-grams may cross utterances, because the two sets may segment a recording differently.
        windows, keys = self._grams(self._ids(list(itertools.chain(*lines))))
        if len(self._keys) and len(keys):
            at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            hits = self._keys[at] == keys
            if hits.any():
                starts = np.cumsum([0, *map(len, lines)])[:-1]
                self._count(name, at[hits], windows[hits], starts)

    def _compare_short(self, name: str, lines: Sequence[list[str]]) -> None:
        matched = set()
        for index, line in enumerate(lines):
            if len(line) >= self._ngram or not line:
                continue
            for number in self._short.get(" ".join(line), ()):
                found = self._utterances[number]
                if found.train_document is None:
                    found.train_document, found.train_utterance = name, index
                found.share = found.share_anywhere = 1.0
                matched.add(number)
        for number in matched:
            self._utterances[number].train_documents += 1

    def _count(self, name: str, keys: np.ndarray, windows: np.ndarray, starts: np.ndarray) -> None:
        found_keys, first = np.unique(keys, return_index=True)
        self._seen[found_keys] = True
        matched: dict[int, tuple[int, int]] = {}  # utterance -> (n-grams, first word)
        for key, window in zip(found_keys.tolist(), windows[first].tolist(), strict=True):
            for number in self._holders[key]:
                count, begins = matched.get(number, (0, window))
                matched[number] = (count + 1, min(begins, window))
        for number, (count, begins) in matched.items():
            found, share = self._utterances[number], count / int(self._totals[number])
            if share > found.share:
                found.share, found.train_document = share, name
                found.train_utterance = int(np.searchsorted(starts, begins, side="right")) - 1
            if share >= self._share:
                found.train_documents += 1
                self.excluded[name] = None

    def finish(self) -> None:
        """Computes the shares over all documents."""
        seen = np.zeros(len(self._utterances), np.int64)
        for key in np.flatnonzero(self._seen).tolist():
            seen[self._holders[key]] += 1
        for number in np.flatnonzero(self._totals).tolist():
            found = self._utterances[number]
            found.share_anywhere = int(seen[number]) / int(self._totals[number])

    def _ids(self, line: Sequence[str]) -> np.ndarray:
        """Returns the ids of words, int64; 0 for words that are not in the evaluation set."""
        return np.fromiter((self._vocabulary.get(word, 0) for word in line), np.int64, len(line))

    def _grams(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns first-word index (int64) and hash (uint64) of n-grams without unknown words."""
        count = len(ids) - self._ngram + 1
        if count <= 0:
            return np.zeros(0, np.int64), np.zeros(0, np.uint64)
        keys, known = np.zeros(count, np.uint64), np.ones(count, bool)
        for offset, factor in enumerate(self._factors):
            part = ids[offset : offset + count]
            keys += self._numbers[part] * factor
            known &= part > 0
        return np.flatnonzero(known), keys[known]
