"""Word error rates, and the spelling in which texts are compared."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Sequence

from soda_jax.errors import UserError

Normaliser = Callable[[str], str]
_DELETED = str.maketrans("", "", ".,!?;:\"'-()[]{}“”‘’")


def normalise(text: str) -> str:
    """The paper's normaliser: punctuation deleted (not spaced), lower case, spaces collapsed.

    Deleted are `. , ! ? ; : " ' - ( ) [ ] { }` and curly quotes (SODA, protocol of the ASR benchmark).

    Texts that Unicode defines as the same ("é" as one code point or as two) give the same result, in
    Unicode's normal form C. Compatibility forms (ligatures, full-width letters, "…") stay different
    as under the paper's rules: form KC would change what the paper counts, and turns "½" into "1⁄2" and
    the accent of "don´t" into a space.
    """
    bare = _canonical(text).translate(_DELETED).lower()
    # Again: a deleted character may have kept an accent from its letter, and a letter may have one code
    # point with its accent in lower case only.
    return " ".join(_canonical(bare).split())


def _canonical(text: str) -> str:
    return unicodedata.normalize("NFC", text)


_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
_ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
    *("tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth"),
    *("seventeenth", "eighteenth", "nineteenth", "twentieth"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: value for value, word in enumerate(_ONES)}
_VALUES |= {word: value for value, word in enumerate(_ORDINALS, 1)}
_DECADES = {word: 20 + 10 * number for number, word in enumerate(_TENS)} | {"thirtieth": 30}
_HOMOPHONES = {"oh": "zero", "won": "one", "to": "two", "too": "two", "for": "four", "ate": "eight"}


def number_normaliser(references: Sequence[str]) -> Normaliser:
    """A normaliser for speech full of numbers, to be applied to references and transcripts alike.

    A recogniser writes the spoken "two eight" as `two eight`, `2-8` or `28`. So every number becomes
    its digits, one a word, and ordinals become plain numbers: `twenty-eight`, `28th`, `two eight` are
    all `2 8`. Nothing tells 28 from 2 8 after that: it is a measure for toys. A homophone of a digit
    (`to`, `for`, `ate`, …) counts as the digit if no reference has that word.

    Args:
      references: all texts that may be meant.
    """
    meant = {word for text in references for word in re.findall(r"[a-z]+", text.lower())}
    homophones = {word: digit for word, digit in _HOMOPHONES.items() if word not in meant}

    def spell(text: str) -> str:
        text = re.sub(r"(?<=\d)(st|nd|rd|th)\b|(?<=\d),(?=\d)|['‘’]", "", _canonical(text.lower()))
        words = [homophones.get(word, word) for word in re.findall(r"\d|[^\W\d_]+", text)]
        return " ".join(_digits(words))

    return spell


def _digits(words: Sequence[str]) -> list[str]:
    """Numbers below 1,000 in words, replaced by their digits."""
    result: list[str] = []
    at = 0
    while at < len(words):
        value, used = _number(words[at:])
        result += str(value) if used else [words[at]]
        at += used or 1
    return result


def _number(words: Sequence[str]) -> tuple[int, int]:
    """Value of the number at the beginning of `words` and its length in words (0: there is none)."""
    if words[1:2] == ["hundred"] and 0 < _VALUES.get(words[0], 0) < 10:
        joined = 3 if words[2:3] == ["and"] else 2
        value, used = _below_hundred(words[joined:])
        return 100 * _VALUES[words[0]] + value, joined + used if used else 2
    return _below_hundred(words)


def _below_hundred(words: Sequence[str]) -> tuple[int, int]:
    first = words[0] if words else ""
    if first in _DECADES:
        unit = _VALUES.get(words[1], 0) if len(words) > 1 else 0
        return (_DECADES[first] + unit, 2) if 0 < unit < 10 else (_DECADES[first], 1)
    return (_VALUES[first], 1) if first in _VALUES else (0, 0)


@dataclasses.dataclass(frozen=True)
class WordErrors:
    """Word error rates of a set of utterances, as shares (1 is 100%).

    Attributes:
      corpus: errors over reference words, all utterances together.
      mean: mean over utterances of their own rates.
      utterances: how many there were.
    """

    corpus: float
    mean: float
    utterances: int


def word_errors(
    references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser = normalise
) -> WordErrors:
    """Compares hypotheses with references, both normalised; insertions may bring a rate above 1.

    Raises:
      UserError: if there is no utterance, a reference is empty once normalised, or jiwer is missing.
    """
    try:
        import jiwer
    except ImportError:
        raise UserError("jiwer is missing: pip install 'soda-jax[eval]'") from None
    wanted = [normaliser(text) for text in references]
    heard = [normaliser(text) for text in hypotheses]
    if not wanted or not all(wanted):
        empty = [text for text, bare in zip(references, wanted, strict=True) if not bare]
        what = f"the reference {empty[0]!r} has no words" if empty else "there are no utterances"
        raise UserError(f"no word error rate: {what}")
    rates = [jiwer.wer(one, other) for one, other in zip(wanted, heard, strict=True)]
    return WordErrors(jiwer.wer(wanted, heard), sum(rates) / len(rates), len(rates))
