"""Long texts are split at sentences, long recordings at pauses."""

import numpy as np
import pytest

from soda_jax.generate.pieces import sentences, split_recording, split_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith met J. Doe. They left.", ["Dr. Smith met J. Doe.", "They left."]),
        ("He said “Go.” Then left.", ["He said “Go.”", "Then left."]),
        ("It costs 3.50 today. Fine.", ["It costs 3.50 today.", "Fine."]),
        ("一つ。二つ！三つ", ["一つ。", "二つ！", "三つ"]),
        ("no end", ["no end"]),
        ("  ", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_pieces_are_whole_sentences_within_the_limit():
    text = "One two. Three four.\n Five six seven. Eight."
    assert split_text(text, 24) == ["One two. Three four.", "Five six seven. Eight."]
    assert split_text(text, 0) == ["One two. Three four. Five six seven. Eight."]
    assert split_text("short", 5) == ["short"]
    assert split_text(" \n ", 10) == []


@pytest.mark.parametrize("longest", [1, 7, 12, 30, 200])
def test_pieces_keep_every_character_and_the_limit(longest):
    text = "A sentence, with clauses; and a very long one: incomprehensibilities. " * 5
    pieces = split_text(text, longest)
    assert max(map(len, pieces)) <= longest
    assert "".join("".join(pieces).split()) == "".join(text.split())
    normal = " ".join(text.split())
    assert all(piece in normal for piece in pieces)


def test_numbers_times_and_addresses_are_not_changed():
    text = "We met at 10:30 on day 3, paid 1,000,000 dollars, and read https://example.org/a,b; then left."
    for longest in (20, 30, 60):
        pieces = split_text(text, longest)
        assert all(piece in text for piece in pieces)
        for word in ("10:30", "1,000,000", "https://example.org/a,b;"):
            assert len(word) > longest or any(word in piece for piece in pieces)
    assert split_text("一つ。二つ。三つ。", 6) == ["一つ。二つ。", "三つ。"]


def test_a_long_sentence_is_cut_at_its_clauses():
    assert split_text("one two three, four five six, seven", 18) == [
        "one two three,",
        "four five six,",
        "seven",
    ]


def speech(*parts: float) -> np.ndarray:
    """Alternates noise and silence, in seconds at 1,000 Hz."""
    rng = np.random.default_rng(0)
    return np.concatenate(
        [
            (rng.normal(size=int(1000 * s)) * (0.1 if n % 2 == 0 else 0)).astype(np.float32)
            for n, s in enumerate(parts)
        ]
    )


def test_recordings_are_cut_in_their_pauses():
    audio = speech(3, 0.5, 2.5, 0.5, 3)
    segments = split_recording(audio, 1000, 4500)
    assert [s.start for s in segments] == [0, *(s.end for s in segments[:-1])]
    assert segments[-1].end == len(audio)
    first, second = (s.end for s in segments[:-1])
    assert first - 150 >= 3000 and first + 150 <= 3500
    assert second - 150 >= 6000 and second + 150 <= 6500


@pytest.mark.parametrize("longest", [1, 2, 99, 1000, 5000, 100_000])
def test_segments_cover_the_recording_and_keep_the_limit(longest):
    audio = speech(2, 0.2, 1.3)[:3333]
    segments = split_recording(audio, 1000, longest)
    assert all(0 < s.end - s.start <= longest for s in segments)
    assert sum(s.end - s.start for s in segments) == len(audio)


def test_silent_segments_are_marked():
    segments = split_recording(speech(2, 6, 2), 1000, 2500)
    assert [s.silent for s in segments].count(True) >= 1
    assert not segments[0].silent and not segments[-1].silent


def test_a_quiet_recording_is_not_silent():
    assert not any(s.silent for s in split_recording(speech(2, 0.2, 2) * 1e-3, 1000, 2500))
    assert not split_recording(np.zeros(10, np.float32), 1000, 20)[0].silent
