"""Partitions the states of the grammar by the set of ids that may come next.

Many states have the same legal set: all text spans share one, and there is one for each codebook.
Training and decoding compute probabilities over such a set only. In a packed window the token after
EOS is the BOS of the next document, so the set after EOS is {BOS}; in a single document it is empty.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable

import numpy as np

from soda_jax.errors import UserError
from soda_jax.tokens.grammar import FIRST_CODEBOOK, ILLEGAL, TEXT, Grammar, grammar
from soda_jax.tokens.vocabulary import VocabularyLayout

# Ascending ranges of ids [first, last).
Ranges = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """The legal sets of packed streams whose audio frames have `codebooks` tokens.

    Attributes:
      layout: the vocabulary.
      codebooks: number of codebooks in the stream.
      rules: the automaton of a single document.
      transitions: `rules.transitions`, in which BOS may follow EOS, int32 `[states, groups]`.
      sets: the ids of each legal set.
      set_of_state: index of the legal set in each state, int32 `[states]`.
    """

    layout: VocabularyLayout
    codebooks: int
    rules: Grammar
    transitions: np.ndarray
    sets: tuple[Ranges, ...]
    set_of_state: np.ndarray

    def legal_ids(self, number: int) -> np.ndarray:
        """Returns the ids of a legal set, ascending, int32 `[ids]`."""
        return np.concatenate([np.arange(*ids, dtype=np.int32) for ids in self.sets[number]])

    def states(self, tokens: np.ndarray, state: int) -> np.ndarray:
        """Returns the state after each token of a part of a packed stream.

        The number of Python steps is the number of markers, BOS and EOS, because the states of the
        text or audio tokens between two of them follow a cycle.

        Args:
          tokens: ids `[tokens]`.
          state: state before the first token.

        Returns:
          int32 `[tokens]`.

        Raises:
          UserError: if a token is not legal; the message contains its position.
        """
        groups = self.rules.groups_of(np.asarray(tokens))
        control = ~self._is_content[groups]
        state_of_run, begin_of_run = [state], [0]
        for position in np.flatnonzero(control).tolist():
            steps = position - begin_of_run[-1]
            steps = 1 + (steps - 1) % self._cycle if steps else 0
            before = self._paths_list[state_of_run[-1]][steps]
            state_of_run.append(self._rows[before][groups[position]])
            begin_of_run.append(position + 1)
        run = np.cumsum(control)
        origin = np.array(state_of_run, np.int32)[run]
        steps = np.arange(1, len(groups) + 1) - np.array(begin_of_run)[run]
        found = self._paths[origin, np.where(steps > 0, 1 + (steps - 1) % self._cycle, 0)]
        previous = np.concatenate([[state], found[:-1]])
        wrong = (found == ILLEGAL) | (self._table[previous, groups] != found)
        if wrong.any():
            position = int(np.argmax(wrong))
            raise UserError(f"token {tokens[position]} at position {position} is not legal there")
        return found

    @functools.cached_property
    def periods(self) -> tuple[int, ...]:
        """For each legal set, the smallest distance between two positions of a row that have it.

        In n consecutive tokens, a set with period p is therefore the legal set of at most ⌈n/p⌉ tokens.
        """
        edges = np.zeros((len(self.transitions),) * 2, bool)
        origins = np.nonzero(self.transitions != ILLEGAL)[0]
        edges[origins, self.transitions[self.transitions != ILLEGAL]] = True
        has_set = self.set_of_state == np.arange(len(self.sets))[:, None]
        reached, periods = has_set, np.zeros(len(self.sets), int)
        # Every state is reached again through EOS and BOS, so the loop ends.
        for distance in itertools.count(1):
            reached = reached @ edges
            periods[(reached & has_set).any(axis=1) & (periods == 0)] = distance
            if periods.all():
                return tuple(periods.tolist())
        raise AssertionError

    @functools.cached_property
    def joint_numbers(self) -> np.ndarray:
        """The number of each legal set in the partition for all codebooks, uint8 `[sets]`."""
        every = partition(self.layout).sets
        return np.array([every.index(ids) for ids in self.sets], np.uint8)

    @property
    def _cycle(self) -> int:
        return max(self.codebooks, 1)

    @functools.cached_property
    def _is_content(self) -> np.ndarray:
        """Whether a group is text or a codebook, bool `[groups + 1]`."""
        content = np.zeros(self.transitions.shape[1] + 1, bool)
        content[[TEXT, *range(FIRST_CODEBOOK, self.transitions.shape[1])]] = True
        return content

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """`transitions` with a row for ILLEGAL and a column for ids outside the vocabulary."""
        return np.pad(self.transitions, ((0, 1), (0, 1)), constant_values=ILLEGAL)

    @functools.cached_property
    def _rows(self) -> list[list[int]]:
        rows: list[list[int]] = self._table.tolist()
        return rows

    @functools.cached_property
    def _paths(self) -> np.ndarray:
        """State after n text or audio tokens, `[states + 1, codebooks + 1]` for n = 0, 1, ….

        In every state at most one of these groups is legal. After one such token, the state
        repeats every `codebooks` tokens (in text, after every token).
        """
        content = self._table[:, self._is_content]
        following = content.max(axis=1)  # the others are ILLEGAL, the smallest value
        paths = [np.append(np.arange(len(self.transitions)), ILLEGAL)]
        for _ in range(self._cycle):
            paths.append(following[paths[-1]])
        return np.stack(paths, axis=1).astype(np.int32)

    @functools.cached_property
    def _paths_list(self) -> list[list[int]]:
        paths: list[list[int]] = self._paths.tolist()
        return paths


@functools.lru_cache(maxsize=32)
def partition(layout: VocabularyLayout, codebooks: int = 0) -> Partition:
    """Returns the partition for streams with `codebooks` codebooks (0 = all)."""
    codebooks = codebooks or layout.codebooks
    rules = grammar(layout, codebooks)
    transitions = rules.transitions.copy()
    transitions[rules.end] = transitions[rules.start]
    legal = transitions != ILLEGAL
    sets: dict[bytes, int] = {}
    set_of_state = [sets.setdefault(row.tobytes(), len(sets)) for row in legal]
    groups = [np.frombuffer(row, bool) for row in sets]
    ids = tuple(_ranges(np.flatnonzero(row[rules.group_of_id])) for row in groups)
    return Partition(layout, codebooks, rules, transitions, ids, np.array(set_of_state, np.int32))


def joint_sets(
    layout: VocabularyLayout, codebooks: Iterable[int]
) -> tuple[tuple[Ranges, ...], tuple[int, ...]]:
    """Returns the legal sets of a mixture of streams with different numbers of codebooks.

    Args:
      layout: the vocabulary.
      codebooks: the numbers of codebooks that occur (0 = all).

    Returns:
      the sets of `partition(layout)`, and the smallest period of each in any of the streams, 0 if it does
      not occur.
    """
    every = partition(layout)
    periods = np.zeros(len(every.sets), int)
    for count in set(codebooks):
        found = partition(layout, count)
        for number, period in zip(found.joint_numbers, found.periods, strict=True):
            periods[number] = min(period, periods[number] or period)
    return every.sets, tuple(periods.tolist())


def _ranges(ids: np.ndarray) -> Ranges:
    """Returns the ranges that ascending ids form."""
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    return tuple((int(part[0]), int(part[-1]) + 1) for part in np.split(ids, breaks))
