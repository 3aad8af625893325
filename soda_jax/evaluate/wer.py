"""Computes word error rates of normalized texts."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Sequence

from soda_jax.errors import UserError

Normalizer = Callable[[str], str]
_DELETED = str.maketrans("", "", ".,!?;:\"'-()[]{}“”‘’")


def normalize(text: str) -> str:
    """Returns a text without punctuation, in lower case, with single spaces (SODA, ASR protocol).

    The characters `. , ! ? ; : " ' - ( ) [ ] { }` and curly quotes are deleted, not replaced by spaces.

    Canonically equivalent texts ("é" as one code point or as two) give the same result, in NFC.
    Compatibility forms (ligatures, full-width letters, "…") are not unified: NFKC would change the
    errors that the paper counts; for example, it replaces "½" by "1⁄2" and the accent of "don´t" by
    a space and a combining accent.
    """
    bare = _canonical(text).translate(_DELETED).lower()
    # Twice: a deleted character may have separated an accent from its letter, and some letters have a single
    # code point with their accent only in lower case.
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


def number_normalizer(references: Sequence[str]) -> Normalizer:
    """Returns a normalizer for texts with many numbers, to use for references and transcripts.

    A recognizer writes the spoken "two eight" as `two eight`, `2-8` or `28`. Every number is replaced by its
    digits, one per word, and ordinals by plain numbers: `twenty-eight`, `28th` and `two eight` all become
    `2 8`. 28 and 2 8 are then the same, which is acceptable for small vocabularies. A homophone of a digit
    (`to`, `for`, `ate`, …) is replaced by the digit if no reference contains that word.

    Args:
      references: all reference texts.
    """
    used = {word for text in references for word in re.findall(r"[a-z]+", text.lower())}
    homophones = {word: digit for word, digit in _HOMOPHONES.items() if word not in used}

    def spell(text: str) -> str:
        text = re.sub(r"(?<=\d)(st|nd|rd|th)\b|(?<=\d),(?=\d)|['‘’]", "", _canonical(text.lower()))
        words = [homophones.get(word, word) for word in re.findall(r"\d|[^\W\d_]+", text)]
        return " ".join(_digits(words))

    return spell


def _digits(words: Sequence[str]) -> list[str]:
    """Returns the words with numbers below 1,000 replaced by their digits."""
    result: list[str] = []
    index = 0
    while index < len(words):
        value, length = _number(words[index:])
        result += str(value) if length else [words[index]]
        index += length or 1
    return result


def _number(words: Sequence[str]) -> tuple[int, int]:
    """Returns value and length in words of the number at the start of `words`; (0, 0) if none."""
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
    """Word error rates of a set of utterances, as fractions.

    Attributes:
      corpus: errors of all utterances divided by all reference words.
      mean: mean of the error rates of the individual utterances.
      utterances: number of utterances.
    """

    corpus: float
    mean: float
    utterances: int


def word_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer = normalize
) -> WordErrors:
    """Compares normalized hypotheses with normalized references.

    A rate can be above 1, because of insertions.

    Raises:
      UserError: if there is no utterance, a normalized reference is empty, or jiwer is missing.
    """
    try:
        import jiwer
    except ImportError:
        raise UserError("jiwer is missing: pip install 'soda-jax[eval]'") from None
    wanted = [normalizer(text) for text in references]
    heard = [normalizer(text) for text in hypotheses]
    if not wanted or not all(wanted):
        empty = [text for text, bare in zip(references, wanted, strict=True) if not bare]
        what = f"the reference {empty[0]!r} has no words" if empty else "there are no utterances"
        raise UserError(f"no word error rate: {what}")
    rates = [jiwer.wer(one, other) for one, other in zip(wanted, heard, strict=True)]
    return WordErrors(jiwer.wer(wanted, heard), sum(rates) / len(rates), len(rates))
