"""Describes the legal sets of a vocabulary: for each, the rows of the head that can be the next token.

The model receives the sets as data. It relies on three properties, which `legal_sets` checks: most ids
of block 0 (the bulk, such as all text) are legal together, the few other ids of block 0 (the singles,
such as markers) are legal in any combination, and a set contains at most one group of block 1, whole.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from soda_jax.errors import UserError
from soda_jax.model.config import VocabularyBlocks

# The set of a position without a target.
NO_SET = 255
_MOST_SINGLES = 64


@dataclasses.dataclass(frozen=True)
class GroupBatch:
    """Sets that contain consecutive groups of block 1 and are equally frequent.

    Attributes:
      sets: index of the set with group `first_group`, `first_group + 1`, ….
      first_group: group of the first set.
      period: two positions of a row that have the same set are at least `period` tokens apart.
    """

    sets: tuple[int, ...]
    first_group: int
    period: int

    def capacity(self, tokens: int) -> int:
        """Returns the largest number of positions with one of the sets in `tokens` consecutive ones."""
        return -(-tokens // self.period)


@dataclasses.dataclass(frozen=True, eq=False)
class LegalSets:
    """The legal sets as rows of the two blocks of the head, see `VocabularyBlocks`.

    Attributes:
      vocabulary: blocks of rows of the head.
      bulk_rows: rows of block 0 that are legal only together, bool `[padded_first]`.
      has_bulk: whether each set contains them, bool `[sets]`.
      single_rows: the other rows of block 0 that are in a set, int32 `[singles]`.
      has_single: whether each set contains each of them, bool `[sets, singles]`.
      group: the group of block 1 that each set contains, −1 for none, int32 `[sets]`.
      batches: the sets that contain a group.
    """

    vocabulary: VocabularyBlocks
    bulk_rows: np.ndarray
    has_bulk: np.ndarray
    single_rows: np.ndarray
    has_single: np.ndarray
    group: np.ndarray
    batches: tuple[GroupBatch, ...]

    @property
    def sizes(self) -> np.ndarray:
        """Number of ids in each set, int64 `[sets]`."""
        groups = np.array((*self.vocabulary.groups, 0))[self.group]
        return self.has_bulk * self.bulk_rows.sum() + self.has_single.sum(axis=1) + groups


def legal_sets(
    vocabulary: VocabularyBlocks,
    sets: Sequence[Sequence[tuple[int, int]]],
    periods: Sequence[int],
) -> LegalSets:
    """Returns the legal sets of a vocabulary.

    Args:
      vocabulary: blocks of rows of the head.
      sets: the ids of each set, as ranges [first, last).
      periods: for each set, the smallest distance in tokens between two positions of a row that have it,
        0 if it never occurs.

    Raises:
      UserError: if a set contains a part of a group or several groups, or block 0 has no ids that are
        legal only together.
    """
    if not 0 < len(sets) < NO_SET:
        raise UserError(f"{len(sets)} legal sets: there must be 1 to {NO_SET - 1}")
    classes = _classes(sets, vocabulary.first_rows)
    # The largest class is the bulk.
    bulk = max(classes, key=lambda owners: len(classes[owners]), default=())
    if not bulk:
        raise UserError("no legal set contains text or markers")
    single_rows = np.sort(np.concatenate([[], *(classes[c] for c in classes if c != bulk)])).astype(
        int
    )
    if len(single_rows) > _MOST_SINGLES:
        raise UserError(
            f"{len(single_rows)} ids of text and markers differ in their legal sets; at most "
            f"{_MOST_SINGLES} may"
        )
    bulk_rows = np.zeros(vocabulary.padded_first, bool)
    bulk_rows[classes[bulk]] = True
    has_single = np.zeros((len(sets), len(single_rows)), bool)
    for owners, ids in classes.items():
        if owners != bulk:
            has_single[np.array(owners)[:, None], np.searchsorted(single_rows, ids)] = True
    has_bulk = np.zeros(len(sets), bool)
    has_bulk[list(bulk)] = True
    return LegalSets(
        vocabulary,
        bulk_rows,
        has_bulk,
        single_rows.astype(np.int32),
        has_single,
        _groups(vocabulary, sets),
        _batches(_groups(vocabulary, sets).tolist(), periods),
    )


def _classes(
    sets: Sequence[Sequence[tuple[int, int]]], stop: int
) -> dict[tuple[int, ...], np.ndarray]:
    """Returns the ids below `stop` by the sets that contain them; ids of no set are omitted."""
    ranges = [(first, min(last, stop)) for ids in sets for first, last in ids if first < stop]
    edges = sorted({edge for ends in ranges for edge in ends})
    classes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for first, last in itertools.pairwise(edges):
        owners = tuple(
            number for number, ids in enumerate(sets) if any(a <= first < b for a, b in ids)
        )
        if owners:
            classes.setdefault(owners, []).append(np.arange(first, last))
    return {owners: np.concatenate(parts) for owners, parts in classes.items()}


def _groups(vocabulary: VocabularyBlocks, sets: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """Returns the group of block 1 in each set, −1 for none, int32 `[sets]`."""
    edges = vocabulary.first_rows + np.cumsum((0, *vocabulary.groups))
    whole = {ends: group for group, ends in enumerate(itertools.pairwise(edges.tolist()))}
    found = np.full(len(sets), -1, np.int32)
    for number, ids in enumerate(sets):
        for first, last in ids:
            if last <= vocabulary.first_rows:
                continue
            group = whole.get((max(first, vocabulary.first_rows), last))
            if group is None or found[number] >= 0:
                raise UserError(f"legal set {number} is not one whole group of audio ids")
            found[number] = group
    return found


def _batches(groups: Sequence[int], periods: Sequence[int]) -> tuple[GroupBatch, ...]:
    """Joins sets of equal period whose groups are consecutive, so that one product serves them."""
    batches: list[GroupBatch] = []
    waiting = {n: g for n, g in enumerate(groups) if g >= 0 and periods[n]}
    while waiting:
        # The longest run of consecutive groups with one period.
        runs = []
        for start in waiting:
            run = [start]
            while True:
                following = [
                    n
                    for n, g in waiting.items()
                    if g == waiting[run[-1]] + 1 and periods[n] == periods[start]
                ]
                if not following:
                    break
                run.append(following[0])
            runs.append(run)
        run = max(runs, key=len)
        batches.append(GroupBatch(tuple(run), groups[run[0]], periods[run[0]]))
        for number in run:
            del waiting[number]
    return tuple(batches)
