"""`render` and `parse` are exact inverses; errors of malformed streams have position and reason."""

import numpy as np
import pytest
from hypothesis import given, settings
from token_strategies import documents

from soda_jax.errors import UserError
from soda_jax.tokens.documents import (
    Utterance,
    View,
    audio_span,
    most_codebooks,
    parse,
    render,
    text_span,
)
from soda_jax.tokens.vocabulary import VocabularyLayout

# Text 0–6, reserved 7, BOS 8, EOS 9, markers 10–13, codebook 0 is 14–16, codebook 1 is 17–18.
LAYOUT = VocabularyLayout(10, (7, 8, 9), 8, 9, (3, 2))
B, E, T, T_, A, A_ = 8, 9, 10, 11, 12, 13


def utterance(text, codes):
    return Utterance("", np.array(text, np.int32), np.array(codes, np.uint16).reshape(-1, 2))


TWO = [utterance([1, 2], [[0, 1]]), utterance([3], [[2, 0], [1, 1]])]


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (View("text_first"), [B, T, 1, 2, T_, A, 14, 18, A_, T, 3, T_, A, 16, 17, 15, 18, A_, E]),
        (View("audio_first"), [B, A, 14, 18, A_, T, 1, 2, T_, A, 16, 17, 15, 18, A_, T, 3, T_, E]),
        (View("text_first", "S+A"), [B, A, 14, 18, A_, A, 16, 17, 15, 18, A_, E]),
        (View("audio_first", "S"), [B, A, 14, A_, A, 16, 15, A_, E]),
        (View("text_first", "S+A+T", 1), [B, T, 1, 2, T_, A, 14, A_, T, 3, T_, A, 16, 15, A_, E]),
        (View("text_first", "text"), [B, 1, 2, 3, E]),
    ],
)
def test_rendered_ids_follow_the_grammar(view, expected):
    ids = render(TWO, view, LAYOUT)
    assert ids.tolist() == expected and ids.dtype == np.int32


def test_spans_have_only_the_requested_markers():
    text, codes = np.array([1, 2]), np.array([[0, 1]], np.uint16)
    assert text_span(text, LAYOUT, opens=False).tolist() == [1, 2, T_]
    assert text_span(text, LAYOUT, closes=False).tolist() == [T, 1, 2]
    assert audio_span(codes, LAYOUT, 2, opens=False, closes=False).tolist() == [14, 18]
    assert audio_span(codes, LAYOUT, 1).tolist() == [A, 14, A_]


@settings(deadline=None, max_examples=200)
@given(documents())
def test_parse_is_the_exact_inverse_of_render(document):
    layout, view, utterances = document
    shown = view.shown_codebooks(layout) if view.has_audio else layout.codebooks
    ids = render(utterances, view, layout)
    assert (ids[0], ids[-1]) == (layout.bos, layout.eos)
    parsed = parse(ids, layout, shown)
    np.testing.assert_array_equal(render(parsed.utterances, parsed.view, layout), ids)
    assert parsed.view.has_text == view.has_text and parsed.view.has_audio == view.has_audio
    if view.composition == "S+A+T":
        assert parsed.view.order == view.order
    if view.has_audio:
        assert parsed.view.shown_codebooks(layout) == shown
    if view.composition == "text":  # without markers, the utterances are one text
        (found,) = parsed.utterances
        whole = np.concatenate([u.text_ids for u in utterances])
        np.testing.assert_array_equal(found.text_ids, whole)
        assert found.codes.shape == (0, layout.codebooks)
        return
    assert len(parsed.utterances) == len(utterances)
    for found, given_one in zip(parsed.utterances, utterances, strict=True):
        text = given_one.text_ids if view.has_text else []
        np.testing.assert_array_equal(found.text_ids, text)
        np.testing.assert_array_equal(found.codes, given_one.codes[:, :shown])


@pytest.mark.parametrize(
    ("ids", "position", "reason"),
    [
        ([B, T, 1, T_, A, 14, A_, E], 6, "expected codebook 1"),  # a partial frame
        ([B, A, 14, 18, 15, A_, E], 5, "expected codebook 1"),
        ([B, T, 1, T_, A, 17, 14, A_, E], 5, "expected codebook 0"),  # wrong codebook order
        ([B, A, 14, 15, A_, E], 3, "expected codebook 1"),
        ([B, A, 14, 18, 18, A_, E], 4, "expected audio_end, codebook 0"),
        ([B, T, 1, A, 14, 18, A_, E], 3, "expected text, text_end"),  # an unclosed span
        ([B, A, 14, 18, E], 4, "expected audio_end, codebook 0"),
        ([B, 1, E, 1], 3, r"expected nothing \(the document has ended\)"),  # tokens after EOS
        ([B, 1, E, B, 1, E], 3, "the document has ended"),
        ([B, T, T_, A, 14, 18, A_, E], 2, "expected text"),  # empty spans
        ([B, A, A_, E], 2, "expected codebook 0"),
        ([B, E], 1, "expected text, text_start, audio_start"),
        ([B, T, 7, T_, A, 14, 18, A_, E], 2, r"token 7 \(reserved\)"),  # a reserved id
        ([B, 7, E], 1, r"token 7 \(reserved\)"),
        ([B, T, 1, T_, E], 4, "expected audio_start"),  # text without its audio
        ([B, A, 14, 18, A_, T, 1, T_, A, 14, 18, A_, E], 12, "expected text_start"),
        ([B, T, 1, T_, A, 14, 18, A_, A, 14, 18, A_, E], 8, "expected EOS, text_start"),
        ([B, 1, T, 2, T_, E], 2, "expected text, EOS"),
        ([1, E], 0, "expected BOS"),
        ([E], 0, "expected BOS"),
        ([B, 1, B, E], 2, r"token 8 \(BOS\)"),
        ([B, 19, E], 1, r"token 19 \(outside the vocabulary\)"),
        ([B, -1, E], 1, r"token -1 \(outside the vocabulary\)"),
    ],
)
def test_the_error_of_a_malformed_stream_has_position_and_reason(ids, position, reason):
    with pytest.raises(UserError, match=reason) as error:
        parse(np.array(ids), LAYOUT)
    assert f"at position {position} is not legal" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_proper_prefix_of_a_document_is_rejected_at_its_end():
    whole = render(TWO, View("audio_first"), LAYOUT)
    for length in range(len(whole)):
        with pytest.raises(UserError, match=f"ends at position {length} inside a document"):
            parse(whole[:length], LAYOUT)


def test_a_stream_with_fewer_codebooks_than_expected_is_rejected():
    shown = render(TWO, View("text_first", "S"), LAYOUT)
    assert parse(shown, LAYOUT, 1).view.composition == "S"
    with pytest.raises(UserError, match="expected codebook 1"):
        parse(shown, LAYOUT)


def test_parse_rejects_a_translation():
    audio, text = [A, 14, 17, A_], [T, 1, T_]
    ids = np.array([B, *audio, *text, *text, *audio, E])
    with pytest.raises(UserError, match="is a translation"):
        parse(ids, LAYOUT)


def test_text_is_parsed_in_a_vocabulary_without_audio():
    layout = VocabularyLayout(10, (8, 9), 8, 9, ())
    view = View("text_first", "text")
    ids = render([Utterance("", np.array([1, 2]), np.zeros((0, 0), np.uint16))], view, layout)
    parsed = parse(ids, layout)
    np.testing.assert_array_equal(render(parsed.utterances, parsed.view, layout), ids)
    with pytest.raises(UserError, match="position 1 is not legal: expected text"):
        parse(np.array([8, layout.audio_start]), layout)


@pytest.mark.parametrize(
    ("utterances", "view", "message"),
    [
        ([], View(), "at least one utterance"),
        ([utterance([], [[0, 0]])], View(), "utterance 0 has no text"),
        ([TWO[0], utterance([1], [])], View(), "utterance 1 has no audio"),
        ([utterance([1, 8], [[0, 0]])], View(), "id 8 at text position 1 is not ordinary text"),
        ([utterance([12], [[0, 0]])], View(), "id 12 at text position 0 is not ordinary text"),
        ([utterance([1, 2, 99], [[0, 0]])], View(), "id 99 at text position 2"),
        ([utterance([1], [[0, 5]])], View(), r"codes\[0, 1\] = 5 is outside codebook 1"),
        ([TWO[0]], View("text_first", "S+A", 3), "view has 3 codebooks, the layout has 2"),
        ([Utterance("", np.array([1]), np.zeros((1, 1), np.uint16))], View(), "codes have 1 codeb"),
    ],
)
def test_a_document_that_cannot_be_rendered_is_rejected(utterances, view, message):
    with pytest.raises(UserError, match=message):
        render(utterances, view, LAYOUT)


def test_views_of_unknown_order_or_composition_are_rejected():
    with pytest.raises(UserError, match="'both' is unknown: use one of text_first, audio_first"):
        View("both")
    with pytest.raises(UserError, match="'A' is unknown"):
        View("text_first", "A")


def test_the_most_codebooks_of_several_views():
    def views(*pairs):
        return [{"composition": name, "codebooks": count} for name, count in pairs]

    layout = VocabularyLayout.soda()
    assert most_codebooks(views(("S+A+T", 3), ("S", 0), ("text", 0)), layout) == 3
    assert most_codebooks(views(("S", 0), ("text", 0)), layout) == 1
    assert most_codebooks(views(("S+A", 0), ("S", 0)), layout) == 8
    assert most_codebooks(views(("text", 0)), layout) == 8
    assert most_codebooks([], layout) == 8
