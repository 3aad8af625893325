"""Invariant 1: one layout defines every id."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soda_jax.errors import UserError
from soda_jax.tokens.vocabulary import MARKERS, VocabularyLayout

SODA = VocabularyLayout.soda()
SMALL = VocabularyLayout(10, (7, 8, 9), 8, 9, (3, 2))


def test_invariant_1_soda_layout_has_the_ids_of_the_paper():
    assert (SODA.text_size, SODA.bos, SODA.eos) == (128_256, 128_000, 128_001)
    assert MARKERS == ("<|text_start|>", "<|text_end|>", "<|audio_start|>", "<|audio_end|>")
    markers = (SODA.text_start, SODA.text_end, SODA.audio_start, SODA.audio_end)
    assert markers == (128_256, 128_257, 128_258, 128_259)
    assert (SODA.audio_base, SODA.codebooks, SODA.size) == (128_260, 8, 144_644)
    assert SODA.codebook_offsets.tolist() == [128_260 + 2048 * k for k in range(8)]
    # Semantic 128260–130307, acoustic 130308–144643.
    first, last = np.zeros((1, 8), int), np.full((1, 8), 2047)
    assert SODA.codes_to_ids(first)[[0, 1]].tolist() == [128_260, 130_308]
    assert SODA.codes_to_ids(last)[[0, 7]].tolist() == [130_307, 144_643]


def test_invariant_1_soda_classes_count_every_id():
    classes = SODA.class_of_id
    counts = np.bincount(classes, minlength=10)
    assert counts.tolist() == [128_254, *[2048] * 8, 6]
    names = ("text", "semantic", *(f"acoustic_{k}" for k in range(1, 8)), "marker")
    assert SODA.class_names == names
    of = {name: number for number, name in enumerate(names)}
    by_id = {
        0: "text", 127_999: "text", 128_000: "marker", 128_001: "marker", 128_002: "text",
        128_256: "marker", 128_259: "marker", 128_260: "semantic", 130_307: "semantic",
        130_308: "acoustic_1", 132_355: "acoustic_1", 132_356: "acoustic_2", 144_643: "acoustic_7",
    }  # fmt: skip
    assert {i: names[c] for i, c in zip(by_id, classes[list(by_id)], strict=True)} == by_id
    assert classes.dtype == np.int8 and of["marker"] == 9


def test_ordinary_text_excludes_special_ids_markers_and_codes():
    ordinary = np.flatnonzero(SMALL.ordinary_text)
    assert ordinary.tolist() == list(range(7))
    assert SODA.ordinary_text.sum() == 128_000 and not SODA.ordinary_text[128_000:].any()


def test_codes_are_flattened_frame_by_frame():
    codes = np.array([[0, 1], [2, 0], [1, 1]], np.uint16)
    ids = SMALL.codes_to_ids(codes)
    assert ids.tolist() == [14, 18, 16, 17, 15, 18] and ids.dtype == np.int32
    assert SMALL.codes_to_ids(codes[:, :1]).tolist() == [14, 16, 15]


@settings(deadline=None, max_examples=60)
@given(st.data(), st.lists(st.integers(1, 70), min_size=1, max_size=6), st.integers(0, 9))
def test_ids_to_codes_is_the_inverse_of_codes_to_ids(data, sizes, frames):
    layout = VocabularyLayout(5, (3, 4), 3, 4, tuple(sizes))
    shown = data.draw(st.integers(1, len(sizes)))
    codes = np.array(
        [[data.draw(st.integers(0, sizes[k] - 1)) for k in range(shown)] for _ in range(frames)],
        np.uint16,
    ).reshape(frames, shown)
    ids = layout.codes_to_ids(codes)
    assert len(ids) == frames * shown and not layout.ordinary_text[ids].any()
    np.testing.assert_array_equal(layout.class_of_id[ids], np.tile(np.arange(1, shown + 1), frames))
    back = layout.ids_to_codes(ids, shown)
    assert back.dtype == np.uint16 and back.shape == (frames, shown)
    np.testing.assert_array_equal(back, codes)


def test_the_error_of_an_index_outside_its_codebook_has_its_position():
    codes = np.zeros((20, 8), int)
    codes[17, 3] = 2051
    message = r"codes\[17, 3\] = 2051 is outside codebook 3 \(0–2047\)"
    with pytest.raises(UserError, match=message):
        SODA.codes_to_ids(codes)
    with pytest.raises(UserError, match=r"codes\[0, 1\] = 2 is outside codebook 1 \(0–1\)"):
        SMALL.codes_to_ids(np.array([[2, 2]]))
    with pytest.raises(UserError, match=r"codes\[1, 0\] = -1 "):
        SMALL.codes_to_ids(np.array([[0, 0], [-1, 0]]))
    with pytest.raises(UserError, match="codes have 3 codebooks, the layout has 2"):
        SMALL.codes_to_ids(np.zeros((1, 3), int))


def test_the_error_of_ids_that_are_not_whole_frames_has_their_position():
    with pytest.raises(UserError, match="partial frame begins at position 2"):
        SMALL.ids_to_codes(np.array([14, 17, 15]), 2)
    with pytest.raises(UserError, match="token 14 at position 3 is not in codebook 1"):
        SMALL.ids_to_codes(np.array([14, 17, 15, 14]), 2)
    with pytest.raises(UserError, match="token 17 at position 0 is not in codebook 0"):
        SMALL.ids_to_codes(np.array([17]), 1)


@pytest.mark.parametrize("layout", [SODA, SMALL, VocabularyLayout(3, (0, 1), 1, 0, ())])
def test_a_layout_read_from_json_is_equal_and_has_the_same_fingerprint(layout):
    back = VocabularyLayout.from_json(layout.to_json())
    assert back == layout and back.fingerprint == layout.fingerprint
    assert len(layout.fingerprint) == 16 and int(layout.fingerprint, 16)


@pytest.mark.parametrize(
    "change",
    [
        {"text_size": 11}, {"specials": (6, 7, 8, 9)}, {"bos": 7}, {"eos": 7},
        {"codebook_sizes": (2, 3)}, {"codebook_sizes": (3, 2, 1)},
    ],
)  # fmt: skip
def test_invariant_1_any_change_of_the_layout_changes_its_fingerprint(change):
    assert dataclasses.replace(SMALL, **change).fingerprint != SMALL.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_sizes": (3, 0)}, "at least 1"),
        ({"text_size": 1}, "at least 2"),
        ({"specials": (9, 8, 7)}, "ascending"),
        ({"specials": (8, 8, 9)}, "ascending"),
        ({"specials": (8, 9, 10)}, "be in 0–9"),
        ({"bos": 9}, "two special text ids"),
        ({"eos": 3}, "EOS 3"),
    ],
)
def test_an_invalid_layout_is_rejected(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **change)
