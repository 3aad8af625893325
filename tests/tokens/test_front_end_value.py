"""Front ends are compared in one way, whatever they belong to."""

import dataclasses

import pytest

from soda_jax.errors import UserError
from soda_jax.tokens.front_end import FrontEnd
from soda_jax.tokens.vocabulary import VocabularyLayout

LAYOUT = VocabularyLayout(258, (256, 257), 256, 257, (6, 4))
OURS = FrontEnd(LAYOUT, "t" * 16, "c" * 16)


def test_invariant_1_a_front_end_is_refused_by_its_first_difference():
    other = FrontEnd(VocabularyLayout.soda(), "u" * 16, "d" * 16)
    for change, message in [
        ({}, "data has the tokenizer t{16}, model has u{16}; convert the data with soda retext$"),
        ({"tokenizer": OURS.tokenizer}, "data has the codec c{16}, model has d{16}; tokenize the"),
        (
            {"tokenizer": OURS.tokenizer, "codec": OURS.codec},
            r"vocabulary layout text_size 258, .* model has text_size 128256, .*; tokenize the data",
        ),
    ]:
        with pytest.raises(UserError, match=message) as error:
            OURS.check_same(dataclasses.replace(other, **change), "data", "model")
        assert "\n" not in str(error.value)
    OURS.check_same(OURS, "data", "model")


def test_a_codec_that_one_side_lacks_is_accepted():
    text = dataclasses.replace(OURS, codec=None)
    assert text.differences(OURS) == OURS.differences(text) == []


@pytest.mark.parametrize(
    ("part", "theirs", "damaged"),
    [
        ("codec", "c" * 14 + "dd", True),
        ("codec", "c" * 13 + "ddd", False),
        ("tokenizer", "u" + "t" * 15, True),
        ("tokenizer", "t" * 17, False),
    ],
)
def test_only_a_fingerprint_with_one_or_two_other_characters_looks_damaged(part, theirs, damaged):
    other = dataclasses.replace(OURS, **{part: theirs})
    (difference,) = OURS.differences(other)
    assert (difference.part, difference.looks_damaged) == (part, damaged)
    with pytest.raises(UserError, match="--repair=data" if damaged else "; new fix, or wait$"):
        OURS.check_same(
            other, "data", "model", fixes={part: "new fix"}, otherwise="wait", repair="data"
        )


def test_metadata_gives_back_the_front_end():
    assert FrontEnd.from_metadata(OURS.to_metadata()) == OURS
    assert OURS.to_metadata()["layout_fingerprint"] == LAYOUT.fingerprint
