"""The legal sets of the automaton agree with `parse` and with the grammar as a regular expression."""

import re
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_strategies import documents, layouts

from soda_jax.errors import UserError
from soda_jax.tokens.documents import parse, render
from soda_jax.tokens.grammar import ILLEGAL, grammar
from soda_jax.tokens.vocabulary import VocabularyLayout

LAYOUT = VocabularyLayout(5, (2, 3, 4), 3, 4, (3, 2))
# One letter for each group of LAYOUT: t text, r reserved, B, E, markers [ ] ( ), codebooks 0 and 1.
LETTERS = dict(zip(range(LAYOUT.size), "ttrBE[]()00011", strict=True))
TEXT, AUDIO = r"\[t+\]", r"\((?:01)+\)"
LANGUAGE = re.compile(
    f"B(?:t+|(?:{TEXT}{AUDIO})+|(?:{AUDIO}{TEXT})+|(?:{AUDIO})+|{AUDIO}{TEXT}{TEXT}{AUDIO})E"
)


def to_the_end(rules):
    """Returns the fewest tokens from each state to the end; −1 if the end cannot be reached."""
    distance = np.full(len(rules.transitions), -1)
    distance[rules.end] = 0
    waiting = deque([rules.end])
    while waiting:
        target = waiting.popleft()
        for origin in np.flatnonzero((rules.transitions == target).any(1)):
            if distance[origin] < 0:
                distance[origin] = distance[target] + 1
                waiting.append(origin)
    return distance


@st.composite
def walks(draw, layout, codebooks):
    """A random walk through the legal sets that takes the shortest way to the end after some tokens."""
    rules = grammar(layout, codebooks)
    distance, state, ids = to_the_end(rules), rules.start, []
    length = draw(st.integers(0, 40))
    while state != rules.end:
        legal = np.flatnonzero(rules.legal(state))
        if len(ids) >= length:
            nexts = np.array([distance[rules.step(state, token)] for token in legal])
            legal = legal[nexts == nexts.min()]
        ids.append(int(legal[draw(st.integers(0, len(legal) - 1))]))
        state = rules.step(state, ids[-1])
    return np.array(ids)


def is_translation(ids, layout):
    kinds = ids[np.isin(ids, [layout.text_start, layout.audio_start])]
    return kinds.tolist() == [
        layout.audio_start, layout.text_start, layout.text_start, layout.audio_start
    ]  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(st.data(), layouts())
def test_invariant_9_every_walk_through_legal_sets_parses(data, layout):
    codebooks = data.draw(st.integers(1, layout.codebooks))
    ids = data.draw(walks(layout, codebooks))
    if is_translation(ids, layout):
        with pytest.raises(UserError, match="translation"):
            parse(ids, layout, codebooks)
        return
    parsed = parse(ids, layout, codebooks)
    np.testing.assert_array_equal(render(parsed.utterances, parsed.view, layout), ids)


@settings(deadline=None, max_examples=60)
@given(walks(LAYOUT, 2), st.data())
def test_invariant_9_parse_rejects_every_illegal_next_token_at_its_position(ids, data):
    rules = grammar(LAYOUT)
    position = data.draw(st.integers(0, len(ids)))
    legal = rules.legal(rules.run(ids[:position]))
    assert legal.any() == (position < len(ids)) and not legal.all()
    for token in range(LAYOUT.size):
        with pytest.raises(UserError) as error:  # too short or illegal, unless the document ends
            parse(np.array([*ids[:position], token, *([LAYOUT.bos] if token == LAYOUT.eos else [])]),
                  LAYOUT)  # fmt: skip
        refused_here = f"token {token} (" in str(error.value) and (
            f"at position {position} is not legal" in str(error.value)
        )
        assert refused_here == (not legal[token])


@settings(deadline=None, max_examples=300)
@given(walks(LAYOUT, 2), st.data())
def test_automaton_accepts_exactly_the_language_of_the_grammar(ids, data):
    rules = grammar(LAYOUT)
    letters = "".join(LETTERS[i] for i in ids.tolist())
    assert LANGUAGE.fullmatch(letters)
    # After one token is inserted, deleted or replaced, or two are swapped, both must still agree.
    kind = data.draw(st.sampled_from(("insert", "delete", "replace", "swap")))
    at, token = data.draw(st.integers(0, len(ids) - 1)), data.draw(st.integers(0, LAYOUT.size - 1))
    changed = ids.tolist()
    if kind == "insert":
        changed.insert(at, token)
    elif kind == "delete":
        del changed[at]
    elif kind == "replace":
        changed[at] = token
    else:
        changed[at], changed[at - 1] = changed[at - 1], changed[at]
    accepted = rules.run(np.array(changed)) == rules.end
    assert accepted == bool(LANGUAGE.fullmatch("".join(LETTERS[i] for i in changed)))


def test_automaton_agrees_with_the_language_on_all_short_streams():
    rules, kinds = grammar(LAYOUT), {letter: token for token, letter in LETTERS.items()}
    accepted, waiting = 0, [("", rules.start)]
    while waiting:
        letters, state = waiting.pop()
        assert (state == rules.end) == bool(LANGUAGE.fullmatch(letters))
        accepted += state == rules.end
        for letter, token in kinds.items():
            following = rules.step(state, token)
            if following == ILLEGAL:
                assert not LANGUAGE.fullmatch(letters + letter)
            elif len(letters) < 13:
                waiting.append((letters + letter, following))
    assert accepted > 20


@settings(deadline=None, max_examples=60)
@given(documents())
def test_invariant_9_every_prefix_of_a_rendered_document_is_legal_and_can_be_completed(document):
    layout, view, utterances = document
    shown = view.shown_codebooks(layout) if view.has_audio else 0
    rules = grammar(layout, shown)
    distance, state = to_the_end(rules), rules.start
    ids = render(utterances, view, layout)
    for token in ids.tolist():
        state = rules.step(state, token)
        assert state != ILLEGAL and distance[state] >= 0
    assert state == rules.end and not rules.legal(state).any()


def test_no_state_of_the_soda_grammar_is_a_dead_end():
    rules = grammar(VocabularyLayout.soda())
    assert (to_the_end(rules) >= 0).all()
    assert len(rules.transitions) < 200 and rules.group_of_id.shape == (144_644,)


def test_translation_documents_are_legal():
    audio, text = "(01)", "[t]"
    kinds = {letter: token for token, letter in LETTERS.items()}
    rules = grammar(LAYOUT)
    ids = [kinds[letter] for letter in f"B{audio}{text}{text}{audio}E"]
    assert rules.run(np.array(ids)) == rules.end
    # No span may follow its last one, and two texts may follow only the first audio span.
    assert not rules.legal(rules.run(np.array(ids[:-1])))[LAYOUT.audio_start]
    twice = [kinds[letter] for letter in f"B{audio}{text}{audio}{text}"]
    assert not rules.legal(rules.run(np.array(twice)))[LAYOUT.text_start]


def test_audio_ends_only_at_a_frame_boundary():
    rules = grammar(LAYOUT)
    kinds = {letter: token for token, letter in LETTERS.items()}
    boundaries = {"B(": False, "B(0": False, "B(01": True, "B(010": False, "B(01)": False}
    for letters, boundary in boundaries.items():
        state = rules.run(np.array([kinds[letter] for letter in letters]))
        assert bool(rules.frame_boundary[state]) == boundary
        assert bool(rules.legal(state)[LAYOUT.audio_end]) == boundary
