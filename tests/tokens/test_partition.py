"""The legal sets agree with the ids that follow each prefix in an enumeration of short documents."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_strategies import documents

from soda_jax.errors import UserError
from soda_jax.tokens.documents import COMPOSITIONS, ORDERS, Utterance, View, render
from soda_jax.tokens.partition import partition
from soda_jax.tokens.vocabulary import VocabularyLayout

# Ids 0 and 1 are text, 3 is BOS, 4 is EOS; markers 6 to 9; codebooks of 2, 1 and 2 entries.
LAYOUT = VocabularyLayout(6, (2, 3, 4, 5), 3, 4, (2, 1, 2))
TEXTS = [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
# The utterances before the last one have these texts, and audio of one frame or of two.
EARLIER_TEXTS = [(0,), (1, 0)]


def audios(codebooks):
    """All codes of one and of two frames, and the two that occur in earlier utterances."""
    sizes = [*LAYOUT.codebook_sizes[:codebooks], *[1] * (LAYOUT.codebooks - codebooks)]
    frames = list(itertools.product(*map(range, sizes)))
    found = [np.array(c) for n in (1, 2) for c in itertools.product(frames, repeat=n)]
    return found, [found[0], found[-1]]


def utterances(texts, codes):
    """All combinations as utterances."""
    pairs = itertools.product(texts, codes)
    return [Utterance("", np.array(text, np.int32), frames) for text, frames in pairs]


def streams(codebooks):
    """Yields all documents of up to three utterances, the last of which takes all values."""
    all_audio, earlier_audio = audios(codebooks)
    for composition, order in itertools.product(COMPOSITIONS, ORDERS):
        if composition == "S" and codebooks > 1:
            continue
        view = View(order, composition, 0 if composition == "S" else codebooks)
        texts, earlier_texts = (TEXTS, EARLIER_TEXTS) if view.has_text else ([()], [()])
        codes, earlier_codes = all_audio, earlier_audio
        if not view.has_audio:
            codes = earlier_codes = [np.zeros((0, 3), int)]
        last = utterances(texts, codes)
        earlier = utterances(earlier_texts, earlier_codes)
        for count in range(1 if composition == "text" else 3):
            for document in itertools.product(*[earlier] * count, last):
                yield render(document, view, LAYOUT).tolist()

    # No view renders a translation: source audio, source text, target text, target audio.
    def audio(codes):
        ids = LAYOUT.codes_to_ids(codes[:, :codebooks]).tolist()
        return [LAYOUT.audio_start, *ids, LAYOUT.audio_end]

    for source, first, second, target in itertools.product(
        earlier_audio, EARLIER_TEXTS, TEXTS, all_audio
    ):
        texts = [[LAYOUT.text_start, *text, LAYOUT.text_end] for text in (first, second)]
        yield [LAYOUT.bos, *audio(source), *texts[0], *texts[1], *audio(target), LAYOUT.eos]


def is_covered(prefix, codebooks):
    """Whether the enumeration has every id that can follow: no length is at its maximum."""
    spans, audio = [], []
    for token in prefix[1:]:
        if token in (LAYOUT.text_start, LAYOUT.audio_start):
            spans.append([])
            audio.append(token == LAYOUT.audio_start)
        elif token not in (LAYOUT.text_end, LAYOUT.audio_end, LAYOUT.eos):
            spans = spans or [[]]  # text without markers
            audio = audio or [False]
            spans[-1].append(token)
    if prefix[-1] == LAYOUT.eos:
        return True
    closed = prefix[-1] in (LAYOUT.text_end, LAYOUT.audio_end)
    if spans and not closed and len(spans[-1]) >= (2 * codebooks if audio[-1] else 2):
        return False
    completed = len(spans) if closed else len(spans) - 1
    if completed >= (6 if False in audio else 3):
        return False
    earlier = [LAYOUT.codes_to_ids(c[:, :codebooks]).tolist() for c in audios(codebooks)[1]]
    return all(
        span in (earlier if is_audio else [list(text) for text in EARLIER_TEXTS])
        for span, is_audio in zip(spans[: max(completed, 0)], audio, strict=False)
    )


@pytest.mark.parametrize("codebooks", [1, 2, 3])
def test_legal_sets_are_the_ids_that_follow_in_all_documents(codebooks):
    following = defaultdict(set)
    for stream in streams(codebooks):
        # Packed: the next document begins after EOS.
        for position, token in enumerate([*stream, LAYOUT.bos]):
            following[tuple([*stream, LAYOUT.bos][:position])].add(token)
    found = partition(LAYOUT, codebooks)
    compared = set()
    for prefix, wanted in following.items():
        if not prefix or not is_covered(prefix, codebooks):
            continue
        state = int(found.states(np.array(prefix), found.rules.start)[-1])
        number = int(found.set_of_state[state])
        assert found.legal_ids(number).tolist() == sorted(wanted), prefix
        compared.add(number)
    assert compared == set(range(len(found.sets)))


def test_the_sets_of_three_codebooks():
    found = partition(LAYOUT)
    text, bos, eos, text_start, text_end, audio_start, audio_end = (0, 2), 3, 4, 6, 7, 8, 9
    wanted = [
        {(bos, bos + 1)},
        {text, (text_start, text_start + 1), (audio_start, audio_start + 1)},  # after BOS
        {text, (eos, eos + 1)},  # text without markers
        {text},
        {text, (text_end, text_end + 1)},
        {(10, 12)},
        {(12, 13)},
        {(13, 15)},
        {(audio_end, 12)},  # at a frame boundary
    ]
    single = [{text_start}, {audio_start}, {eos}, {audio_start, eos}, {text_start, eos}]
    single += [{text_start, audio_start, eos}]
    for ids in single:
        wanted.append({(i, i + 1) for i in ids})
    assert {frozenset(s) for s in found.sets} == set(map(frozenset, wanted))


@settings(deadline=None, max_examples=150)
@given(st.lists(documents(), min_size=1, max_size=3), st.data())
def test_states_of_any_part_of_a_packed_stream_are_those_of_single_steps(drawn, data):
    layout, view, _ = drawn[0]
    codebooks = view.shown_codebooks(layout) if view.has_audio else layout.codebooks
    stream = np.concatenate([render(drawn[0][2], view, layout)] * len(drawn))
    found = partition(layout, codebooks)
    wanted, state = [], found.rules.start
    for token in stream.tolist():
        state = found.rules.start if state == found.rules.end else state
        state = found.rules.step(state, token)
        wanted.append(state)
    np.testing.assert_array_equal(found.states(stream, found.rules.end), wanted)
    cut = data.draw(st.integers(1, len(stream)))
    np.testing.assert_array_equal(found.states(stream[cut:], wanted[cut - 1]), wanted[cut:])


def test_an_illegal_token_is_named_with_its_position():
    found = partition(LAYOUT)
    good = [3, 8, 10, 12, 13, 9, 4]
    assert found.states(np.array(good), found.rules.start)[-1] == found.rules.end
    for position, token in ((0, 4), (2, 13), (4, 10), (5, 12), (6, 0), (6, 15), (6, -1)):
        bad = np.array(good)
        bad[position] = token
        with pytest.raises(UserError, match=f"token {token} at position {position} is not legal"):
            found.states(bad, found.rules.start)
