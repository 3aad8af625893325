"""Which token may come next: one prefix-only automaton over all document types.

Legality depends on the state and on the *group* of a token (text, a marker, a codebook …), so the
automaton is two small tables that also work inside a jitted loop: `transitions[state, group]` and
`group_of_id[id]`.
"""

import dataclasses
import functools

import numpy as np

from soda_jax.tokens.vocabulary import VocabularyLayout

# A document type is a run of spans (T text, A audio); a loop may repeat as a whole.
LOOPS = {"text_first": "TA", "audio_first": "AT", "audio_only": "A"}
ONCE = {"translation": "ATTA"}

_FIXED_GROUPS = (
    "text",
    "BOS",
    "EOS",
    "text_start",
    "text_end",
    "audio_start",
    "audio_end",
    "reserved",
)
TEXT, BOS, EOS, TEXT_START, TEXT_END, AUDIO_START, AUDIO_END, RESERVED = range(8)
FIRST_CODEBOOK = len(_FIXED_GROUPS)
ILLEGAL = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Grammar:
    """The automaton as tables.

    Attributes:
      transitions: int32 `[states, groups]`, the next state or −1 where the group is not legal.
      group_of_id: int32 `[vocabulary]`, the group of each id.
      group_names: names of the groups, for messages.
      frame_boundary: bool `[states]`: inside an audio span, between two whole frames.
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
        """`transitions` as lists, with a last column for ids outside the vocabulary: never legal."""
        return [[*row, ILLEGAL] for row in self.transitions.tolist()]

    def groups_of(self, ids: np.ndarray) -> np.ndarray:
        """Column of each id in `rows`, int32 of the same shape; ids may be any integers."""
        inside = (ids >= 0) & (ids < len(self.group_of_id))
        return np.where(inside, self.group_of_id[np.where(inside, ids, 0)], len(self.group_names))

    def step(self, state: int, token: int) -> int:
        """The state after `token`, or −1 if it is not legal in `state`."""
        return int(self.transitions[state, self.group_of_id[token]])

    def run(self, ids: np.ndarray, state: int | None = None) -> int:
        """The state after all of `ids`, or −1 from the first illegal token on."""
        state = self.start if state is None else state
        for token in np.asarray(ids).tolist():
            state = self.step(state, token)
            if state == ILLEGAL:
                return ILLEGAL
        return state

    def legal(self, state: int) -> np.ndarray:
        """The legal set of `state`, bool `[vocabulary]`."""
        return (self.transitions[state] != ILLEGAL)[self.group_of_id]

    def legal_groups(self, state: int) -> list[str]:
        """Names of the groups that are legal in `state`."""
        return [self.group_names[group] for group in np.flatnonzero(self.transitions[state] >= 0)]

    def name_of(self, token: int) -> str:
        """Name of the group of a token."""
        return self.group_names[self.group_of_id[token]]


@functools.lru_cache(maxsize=32)
def grammar(layout: VocabularyLayout, codebooks: int = 0) -> Grammar:
    """The union of all document types for the first `codebooks` codebooks (0: all) of `layout`."""
    codebooks = codebooks or layout.codebooks
    spans = _span_states(codebooks > 0)
    # Token-level states: start, after BOS, raw text (empty or not), end; then for each span-level
    # state that a span leads to, the inside of that span.
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
            # `filled` stands after a whole frame; `inside` states stand after codebook k of a frame.
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
    """The union of the document types over spans, by the subset construction; the start stands first.

    A position is (type, spans read so far); a state is the set of positions still possible. Returns
    for each state where a T or an A leads and whether the document may end there. Without audio in
    the vocabulary raw text is the only type of document, and no span may begin.
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
        for name, place in state:
            pattern = patterns[name]
            # A loop that has come round stands at its length: it may end or begin again.
            done = place == len(pattern)
            complete |= done
            if done and name in ONCE:
                continue
            at = 0 if done else place
            following.setdefault(pattern[at], set()).add((name, at + 1))
        targets = {kind: frozenset(following[kind]) for kind in sorted(following)}
        states[state] = (targets, complete)
        waiting += targets.values()
    return states
