"""Fits unigram and bigram baselines of the loss on the training windows.

    unigram   p(t)     = w · n(t) / N        + (1 − w) / V
    bigram    p(t | s) = w_s · n(s, t) / n(s) + (1 − w_s) · p(t)

s is the token before t in the window, n(·) counts occurrences, N is the number of targets and V the
size of the vocabulary. The weights are those of Jelinek and Mercer's interpolated estimation
(1980): all tokens s of the same class and with the same ⌊log2 n(s)⌋ have the same weight w_s.
Weights are fitted by expectation maximization on a tenth of the training windows, with counts from
the rest; the final counts use all windows that were read. A weight depends only on s, so the
probabilities sum to 1.

For a model whose loss is over the legal sets, both are divided by their sum over the legal set L of the
position, so that model and baselines have the same normalizer: p(t | s, L) = p(t | s) / Σ_{u in L} p(u | s).
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from soda_jax.evaluate.windows import Sums, Windows, open_windows
from soda_jax.progress import track
from soda_jax.schema import DataConfig, parse
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.partition import Ranges, partition

_BUCKETS = 32  # count buckets: [1, 2), [2, 4), …
_ROUNDS = 60  # iterations of expectation maximization
_ROWS = 64  # windows read at a time
_HELD_BACK = 0.1  # fraction of the training windows that the weights are fitted on


@dataclasses.dataclass(frozen=True, eq=False)
class _Counts:
    """Counts of a token stream.

    Attributes:
      targets, contexts: how often each id is a target t or a context s, `[vocabulary]`.
      pairs: the pairs that occur, as sorted numbers s · V + t.
      pair_counts: how often each of `pairs` occurs.
    """

    targets: np.ndarray
    contexts: np.ndarray
    pairs: np.ndarray
    pair_counts: np.ndarray

    def conditional(self, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
        """Returns n(s, t) / n(s), f64 `[targets]`; 0 for contexts that do not occur."""
        key = previous.astype(np.int64) * len(self.targets) + following
        index = np.minimum(np.searchsorted(self.pairs, key), max(len(self.pairs) - 1, 0))
        found = self.pairs[index] == key
        return found * self.pair_counts[index] / np.maximum(self.contexts[previous], 1)

    def conditional_sum(self, previous: np.ndarray, ranges: Ranges) -> np.ndarray:
        """Returns Σ n(s, t) / n(s) over the ids t in `ranges`, f64 `[targets]`."""
        first = previous.astype(np.int64) * len(self.targets)
        found = np.zeros(len(previous), np.int64)
        for start, stop in ranges:
            found += self._below(first + stop) - self._below(first + start)
        return found / np.maximum(self.contexts[previous], 1)

    def _below(self, keys: np.ndarray) -> np.ndarray:
        """Returns the count of all pairs below each of `keys`, int64."""
        return self._cumulative[np.searchsorted(self.pairs, keys)]

    @functools.cached_property
    def _cumulative(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.pair_counts)])


@dataclasses.dataclass(frozen=True, eq=False)
class Baselines:
    """Fitted baselines.

    Attributes:
      layout: the vocabulary.
      tokens: number of training targets.
      counts: counts of all training targets.
      unigram: p(t), f64 `[vocabulary]`.
      weights: w_s for each group of contexts (see `_groups`), f64.
    """

    layout: VocabularyLayout
    tokens: int
    counts: _Counts
    unigram: np.ndarray
    weights: np.ndarray

    def losses(
        self, previous: np.ndarray, following: np.ndarray, sets: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns −log p of each target under unigram and bigram, in nats, both f64 `[targets]`.

        Args:
          previous: ids of the previous tokens `[targets]`.
          following: ids of the targets `[targets]`.
          sets: the legal set of each target, a number in `partition(layout).sets`, over which it is normalized
            `[targets]`; None = all ids. A target must be in its set.
        """
        base = self.unigram[following]
        weight = self.weights[_groups(self.layout, self.counts, previous)]
        mixed = weight * self.counts.conditional(previous, following) + (1 - weight) * base
        if sets is None:
            return -np.log(base), -np.log(mixed)
        of_base, of_mixed = np.ones((2, len(base)))
        ranges = partition(self.layout).sets
        for number in np.unique(sets):
            at = sets == number
            of_base[at] = sum(self.unigram[slice(*ids)].sum() for ids in ranges[number])
            seen = self.counts.conditional_sum(previous[at], ranges[number])
            of_mixed[at] = weight[at] * seen + (1 - weight[at]) * of_base[at]
        return np.log(of_base / base), np.log(of_mixed / mixed)

    def sums(self, windows: Windows) -> dict[str, Sums]:
        """Returns the loss sums of "unigram" and "bigram" over all windows.

        Targets are normalized over their legal sets if the windows were opened with `legal_sets`, else over
        all ids.
        """
        shape = (len(windows.source_names), len(self.layout.class_names))
        result = {
            name: {"nll": np.zeros(shape), "count": np.zeros(shape)}
            for name in ("unigram", "bigram")
        }
        for batch in windows.batches(_ROWS):
            previous, following, mask = _targets(batch)
            classes = batch["target_class"][:, :-1][mask].astype(np.int64)
            number = int(batch["source"][0])
            count = np.bincount(classes, minlength=shape[1])
            sets = batch["legal_set"][:, :-1][mask] if "legal_set" in batch else None
            losses = self.losses(previous, following, sets)
            for sums, nll in zip(result.values(), losses, strict=True):
                sums["nll"][number] += np.bincount(classes, nll, shape[1])
                sums["count"][number] += count
        return result


def fit_baselines(
    config: DataConfig | Mapping[str, Any], max_tokens: int = 16_000_000
) -> Baselines:
    """Fits the unigram and bigram baselines in one pass over the training windows.

    Args:
      config: the `data` settings of a run.
      max_tokens: approximate maximum number of tokens to read; if there are more, only every n-th
        batch is read.
    """
    config = parse(DataConfig, config, "data")
    windows = open_windows(config, "train")
    layout = windows.layout
    stride = max(1, -(-windows.count * config.sequence_length // max_tokens))
    kept: list[np.ndarray] = []
    held_back: list[np.ndarray] = []
    stream = _stream(windows, stride)
    for pairs, back in track(stream, "count pairs of tokens", _batches(windows, stride)):
        kept.append(pairs[:, ~back])
        held_back.append(pairs[:, back])
    rest = np.concatenate(held_back, axis=1)
    counts = _count(layout, np.concatenate(kept, axis=1))

    seen = counts.targets / max(counts.targets.sum(), 1)
    uniform = np.full(rest.shape[1], 1 / layout.size)
    weight = _fit_weights(seen[rest[1]], uniform, np.zeros_like(rest[1]), 1)[0]
    base = weight * seen + (1 - weight) / layout.size
    groups = _groups(layout, counts, rest[0])
    number = (len(layout.class_names) + 1) * _BUCKETS
    weights = _fit_weights(counts.conditional(*rest), base[rest[1]], groups, number)
    weights[-_BUCKETS:] = 0  # contexts that do not occur

    counts = _count(layout, np.concatenate([*kept, rest], axis=1))
    tokens = int(counts.targets.sum())
    unigram = weight * counts.targets / max(tokens, 1) + (1 - weight) / layout.size
    return Baselines(layout, tokens, counts, unigram, weights)


def _batches(windows: Windows, stride: int) -> int:
    return sum(-(-(d.windows or 0) // (_ROWS * stride)) for d in windows.datasets.values())


def _stream(windows: Windows, stride: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (previous, target) ids `[2, targets]` and a held-back mask of every `stride`-th batch.

    The last tenth of each view is held back. If a source has two views, one for each order of text
    and audio, this is the same tenth of the documents in both, so no document is counted in one
    view and held back in the other.
    """
    for dataset in windows.datasets.values():
        source, count = dataset.sources[0], dataset.windows or 0
        views = len(source.views)
        for start in range(0, count, _ROWS * stride):
            batch = dataset.batch(start, range(_ROWS)).arrays()
            previous, following, mask = _targets(batch)
            back = (start + np.arange(_ROWS)) / count * views % 1 >= 1 - _HELD_BACK
            yield np.stack([previous, following]), back[np.nonzero(mask)[0]]


def _targets(batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns previous tokens and targets where the mask is 1, both `[targets]`, and the mask."""
    mask = batch["loss_mask"][:, :-1] > 0
    tokens = batch["tokens"]
    return tokens[:, :-1][mask], tokens[:, 1:][mask], mask


def _count(layout: VocabularyLayout, stream: np.ndarray) -> _Counts:
    previous, following = stream
    key = previous.astype(np.int64) * layout.size + following
    pairs, pair_counts = np.unique(key, return_counts=True)
    return _Counts(
        np.bincount(following, minlength=layout.size),
        np.bincount(previous, minlength=layout.size),
        pairs,
        pair_counts,
    )


def _groups(layout: VocabularyLayout, counts: _Counts, previous: np.ndarray) -> np.ndarray:
    """Returns the group number of a context; contexts in a group share class and ⌊log2 count⌋."""
    count = counts.contexts[previous]
    bucket = np.minimum(np.log2(np.maximum(count, 1)).astype(np.int64), _BUCKETS - 1)
    classes = np.where(count > 0, layout.class_of_id[previous], len(layout.class_names))
    return classes.astype(np.int64) * _BUCKETS + bucket


def _fit_weights(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray, number: int
) -> np.ndarray:
    """Returns the weight w of each group that maximizes the likelihood, f64 `[number]`.

    The likelihood is the product of w · `first` + (1 − w) · `second` over the targets of the group.
    One pseudo-count per group, split evenly, prevents weights of 0 and 1. A group without targets
    has weight 1/2.
    """
    total = np.bincount(groups, minlength=number)
    weights = np.full(number, 0.5)
    for _ in range(_ROUNDS):
        weighted = weights[groups] * first
        share = weighted / (weighted + (1 - weights[groups]) * second)
        weights = (np.bincount(groups, share, number) + 0.5) / (total + 1)
    return weights
