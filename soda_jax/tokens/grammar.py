"""Determines which tokens may come next, with one automaton for all document types.

Whether a token is legal depends only on the state and the *group* of the token (text, a marker, a
codebook …). The automaton therefore consists of two small tables that can be used in a jitted loop:
`transitions[state, group]` and `group_of_id[id]`.
"""

import dataclasses
import functools

import numpy as np

from soda_jax.tokens.vocabulary import VocabularyLayout

# A document type is a sequence of spans (T = text, A = audio). Sequences in LOOPS may be repeated.
LOOPS = {"text_first": "TA", "audio_first": "AT", "audio_only": "A"}
ONCE = {"translation": "ATTA"}

_FIXED_GROUPS = (
    *("text", "BOS", "EOS", "text_start", "text_end"),
    *("audio_start", "audio_end", "reserved"),
)
TEXT, BOS, EOS, TEXT_START, TEXT_END, AUDIO_START, AUDIO_END, RESERVED = range(8)
FIRST_CODEBOOK = len(_FIXED_GROUPS)
ILLEGAL = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Grammar:
    """The automaton as tables.

    Attributes:
      transitions: int32 `[states, groups]`, the next state, or −1 if the group is not legal.
      group_of_id: int32 `[vocabulary]`, the group of each id.
      group_names: names of the groups, for messages.
      frame_boundary: bool `[states]`, True in an audio span after a complete frame.
      start: the state before BOS.
      end: the state after EOS, in which nothing is legal.
    """

    transitions: np.ndarray
    group_of_id: np.ndarray
    group_names: tuple[str, ...]
    frame_boundary: np.ndarray
    start: int
    end: int

    @functools.cached_property
    def rows(self) -> list[list[int]]:
        """`transitions` as lists, with an extra column of −1 for ids outside the vocabulary."""
        return [[*row, ILLEGAL] for row in self.transitions.tolist()]

    def groups_of(self, ids: np.ndarray) -> np.ndarray:
        """Returns the column in `rows` for each id (any integer), int32 of the same shape."""
        inside = (ids >= 0) & (ids < len(self.group_of_id))
        return np.where(inside, self.group_of_id[np.where(inside, ids, 0)], len(self.group_names))

    def step(self, state: int, token: int) -> int:
        """Returns the state after `token`, or −1 if `token` is not legal in `state`."""
        return int(self.transitions[state, self.group_of_id[token]])

    def run(self, ids: np.ndarray, state: int | None = None) -> int:
        """Returns the state after all `ids`, or −1 if an id is not legal.

        Args:
          ids: token ids `[tokens]`.
          state: state before the first id; None is `start`.
        """
        state = self.start if state is None else state
        for token in np.asarray(ids).tolist():
            state = self.step(state, token)
            if state == ILLEGAL:
                return ILLEGAL
        return state

    def legal(self, state: int) -> np.ndarray:
        """Returns whether each id is legal in `state`, bool `[vocabulary]`."""
        return (self.transitions[state] != ILLEGAL)[self.group_of_id]

    def legal_groups(self, state: int) -> list[str]:
        """Returns the names of the groups that are legal in `state`."""
        return [self.group_names[group] for group in np.flatnonzero(self.transitions[state] >= 0)]

    def name_of(self, token: int) -> str:
        """Returns the name of the group of a token."""
        return self.group_names[self.group_of_id[token]]


@functools.lru_cache(maxsize=32)
def grammar(layout: VocabularyLayout, codebooks: int = 0) -> Grammar:
    """Returns the automaton for all document types with `codebooks` codebooks (0 = all)."""
    codebooks = codebooks or layout.codebooks
    spans = _span_states(codebooks > 0)
    # States of the token automaton: start, end, between spans, raw text without markers, and the
    # states inside each span.
    names: dict[object, int] = {}

    def number(name: object) -> int:
        return names.setdefault(name, len(names))

    edges: list[tuple[int, int, int]] = []
    start, end = number("start"), number("end")
    between = {positions: number(("between", positions)) for positions in spans}
    first = next(iter(spans))
    edges.append((start, BOS, between[first]))
    raw = number("raw text")
    edges += [(between[first], TEXT, raw), (raw, TEXT, raw), (raw, EOS, end)]
    for positions, (following, complete) in spans.items():
        here = between[positions]
        if complete:
            edges.append((here, EOS, end))
        for kind, target in following.items():
            opened, filled = number((kind, target, "opened")), number((kind, target, "filled"))
            if kind == "T":
                edges.append((here, TEXT_START, opened))
                edges += [(opened, TEXT, filled), (filled, TEXT, filled)]
                edges.append((filled, TEXT_END, between[target]))
                continue
            edges.append((here, AUDIO_START, opened))
            # `filled` is the state after a whole frame, `inside[k]` the state after codebook k.
            inside = [number((kind, target, k)) for k in range(codebooks - 1)] + [filled]
            edges += [(origin, FIRST_CODEBOOK, inside[0]) for origin in (opened, filled)]
            edges += [(inside[k - 1], FIRST_CODEBOOK + k, inside[k]) for k in range(1, codebooks)]
            edges.append((filled, AUDIO_END, between[target]))
    transitions = np.full((len(names), FIRST_CODEBOOK + layout.codebooks), ILLEGAL, np.int32)
    for origin, group, target_state in edges:
        transitions[origin, group] = target_state
    boundary = np.zeros(len(names), bool)
    for name, state in names.items():
        boundary[state] = isinstance(name, tuple) and name[0] == "A" and name[2] == "filled"
    audio_names = tuple(f"codebook {k}" for k in range(layout.codebooks))
    group_names = (*_FIXED_GROUPS, *audio_names)
    return Grammar(transitions, _group_of_id(layout), group_names, boundary, start, end)


def _group_of_id(layout: VocabularyLayout) -> np.ndarray:
    groups = np.full(layout.size, RESERVED, np.int32)
    groups[layout.ordinary_text] = TEXT
    groups[layout.bos], groups[layout.eos] = BOS, EOS
    groups[layout.text_start], groups[layout.text_end] = TEXT_START, TEXT_END
    groups[layout.audio_start], groups[layout.audio_end] = AUDIO_START, AUDIO_END
    groups[layout.audio_base :] = layout.class_of_id[layout.audio_base :] - 1 + FIRST_CODEBOOK
    return groups


def _span_states(with_audio: bool) -> dict[frozenset, tuple[dict[str, frozenset], bool]]:
    """Builds the automaton over spans for all document types, by the subset construction.

    A position is (document type, number of spans read), and a state is a set of possible positions.
    The result maps each state, starting with the initial one, to (next states for T and A, whether
    the document may end here). In a vocabulary without audio, raw text is the only document type,
    and no span may begin.
    """
    patterns = {**LOOPS, **ONCE} if with_audio else {}
    begin = frozenset((name, 0) for name in patterns)
    states: dict[frozenset, tuple[dict[str, frozenset], bool]] = {}
    waiting = [begin]
    while waiting:
        state = waiting.pop(0)
        if state in states:
            continue
        following: dict[str, set] = {}
        complete = False
        for name, read in state:
            pattern = patterns[name]
            done = read == len(pattern)  # the document may end, and a loop may start again
            complete |= done
            if done and name in ONCE:
                continue
            at = 0 if done else read
            following.setdefault(pattern[at], set()).add((name, at + 1))
        targets = {kind: frozenset(following[kind]) for kind in sorted(following)}
        states[state] = (targets, complete)
        waiting += targets.values()
    return states
