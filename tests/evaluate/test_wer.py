"""Word error rates and the normalization of texts."""

import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soda_jax.errors import UserError
from soda_jax.evaluate.wer import normalize, number_normalizer, word_errors


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("Don't STOP, (please)!", "dont stop please"),
        ("well-known “quotes” and ‘these’", "wellknown quotes and these"),
        ("  a \n\t b  ", "a b"),
        ("[x]{y}: z; 'w' \"v\"?", "xy z w v"),
        ("5% of Ünïcode — kept", "5% of ünïcode — kept"),
    ],
)
def test_the_papers_normalizer_deletes_its_characters_without_spacing(text, bare):
    assert normalize(text) == bare


FORMS = ("NFC", "NFD")
# One text of each script in which a letter has several code points; the last has two marks.
SAME = [
    "café", "Zürich Ångström", "各 가각힣", "がぎぐ パピプ", "क़ख़", "Ελλάδα ΐ", "ở Việt", "\u0323s\u0307 ṩ",
    "\u212b \u212a \u2126",
]  # fmt: skip


@pytest.mark.parametrize("text", SAME)
def test_texts_that_unicode_defines_as_the_same_have_no_word_errors(text):
    for one, other in itertools.permutations([unicodedata.normalize(f, text) for f in FORMS], 2):
        assert normalize(one) == normalize(other)
        assert word_errors([one], [other]).corpus == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("s\u0323\u0307", "s\u0307\u0323"),  # marks in another order
        ("J\u030cin", "\u01f0in"),  # one code point in lower case only
        ("caf(e)\u0301", "caf\u00e9"),  # a mark after a deleted character
        ("what\u037e", "what;"),  # the Greek question mark is a semicolon
        ("CAFE\u0301", "caf\u00e9"),
    ],
)
def test_marks_and_singletons_compare_in_one_form(one, other):
    assert normalize(one) == normalize(other)


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("ﬁne", "ﬁne"),
        ("ＯＫ１", "ｏｋ１"),
        ("well… ½ x²", "well… ½ x²"),
        ("don´t don’t don't", "don´t dont dont"),
        ("a–b—c‐d-e", "a–b—c‐de"),
        ("„so“ «so» ‚so’", "„so «so» ‚so"),
        ("non\u00a0breaking\u3000spaces", "non breaking spaces"),
    ],
)
def test_compatibility_forms_are_not_unified_as_in_the_paper(text, bare):
    assert normalize(text) == bare


@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_ascii_has_the_papers_result(text):
    kept = "".join(c for c in text if c not in ".,!?;:\"'-()[]{}")
    assert normalize(text) == " ".join(kept.lower().split())


@given(st.text(max_size=20))
def test_the_result_is_in_form_c_and_the_same_for_every_form(text):
    bare = normalize(text)
    assert unicodedata.normalize("NFC", bare) == bare
    for form in FORMS:
        assert normalize(unicodedata.normalize(form, text)) == bare


def test_numbers_with_decomposed_words_compare_like_composed_ones():
    spell = number_normalizer(["café 28"])
    assert spell("cafe\u0301 twenty-eight") == spell("café 28") == "café 2 8"


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("28", "two eight"),
        ("2-8.", "two eight"),
        ("Twenty-eight", "two eight"),
        ("Turn down 1!", "turn down one"),
        ("May 21st", "may twenty first"),
        ("1,234", "one two three four"),
        ("321", "three hundred and twenty one"),
        ("305", "three hundred five"),
        ("100 and go", "one hundred and go"),
        ("13 30", "thirteen thirty"),
        ("Go to, for ate", "go two four eight"),
    ],
)
def test_numbers_compare_equal_in_any_spelling(written, spoken):
    spell = number_normalizer([spoken])
    assert spell(written) == spell(spoken)


def test_different_numbers_remain_different():
    spell = number_normalizer(["two eight"])
    assert len({spell(text) for text in ("two eight", "eight two", "two", "2 8 8", "to late")}) == 5


def test_a_homophone_in_the_references_remains_a_word():
    assert number_normalizer(["go to one"])("to") == "to"
    assert number_normalizer(["go one"])("to") == "2"


def test_the_corpus_rate_weights_by_words_and_the_mean_by_utterances():
    errors = word_errors(["a b c d", "a"], ["A, b c d.", "x y"])
    assert errors.corpus == pytest.approx(2 / 5)
    assert errors.mean == pytest.approx((0 + 2) / 2)
    assert errors.utterances == 2


def test_an_empty_hypothesis_is_all_errors():
    assert word_errors(["a b"], [""]).mean == 1


@pytest.mark.parametrize("references", [[], ["..."]])
def test_without_words_there_is_no_rate(references):
    with pytest.raises(UserError, match="no word error rate"):
        word_errors(references, [""] * len(references))
