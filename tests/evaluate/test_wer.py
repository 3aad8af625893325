import pytest

from soda_jax.errors import UserError
from soda_jax.evaluate.wer import normalise, number_normaliser, word_errors


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
def test_the_papers_normaliser_deletes_its_characters_without_spacing(text, bare):
    assert normalise(text) == bare


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
def test_numbers_compare_however_they_are_written(written, spoken):
    spell = number_normaliser([spoken])
    assert spell(written) == spell(spoken)


def test_different_numbers_stay_different():
    spell = number_normaliser(["two eight"])
    assert len({spell(text) for text in ("two eight", "eight two", "two", "2 8 8", "to late")}) == 5


def test_a_homophone_that_the_references_use_stays_a_word():
    assert number_normaliser(["go to one"])("to") == "to"
    assert number_normaliser(["go one"])("to") == "2"


def test_corpus_rate_weighs_by_words_and_mean_by_utterances():
    errors = word_errors(["a b c d", "a"], ["A, b c d.", "x y"])
    assert errors.corpus == pytest.approx(2 / 5)
    assert errors.mean == pytest.approx((0 + 2) / 2)
    assert errors.utterances == 2


def test_silence_is_all_errors():
    assert word_errors(["a b"], [""]).mean == 1


@pytest.mark.parametrize("references", [[], ["..."]])
def test_without_words_there_is_no_rate(references):
    with pytest.raises(UserError, match="no word error rate"):
        word_errors(references, [""] * len(references))
