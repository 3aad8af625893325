"""Numbers in words, and a spelling in which a transcript and its reference can be compared."""

import re

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
    *("tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth"),
    *("seventeenth", "eighteenth", "nineteenth", "twentieth"),
)

_UNITS = {word: value for value, word in enumerate((*DIGITS, *TEENS))}
_UNITS |= {word: value for value, word in enumerate(ORDINALS, 1)}
_DECADES = {word: value for value, word in zip(range(20, 100, 10), TENS, strict=True)}
_DECADES["thirtieth"] = 30
_HOMOPHONES = {"oh": "zero", "won": "one", "to": "two", "too": "two", "for": "four", "ate": "eight"}


def number_in_words(value: int) -> str:
    """A whole number from 0 to 999 as it is spoken: `three hundred twenty one`."""
    hundreds, rest = divmod(value, 100)
    spoken = [DIGITS[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        spoken += [TENS[rest // 10 - 2], *([DIGITS[rest % 10]] if rest % 10 else [])]
    elif rest or not hundreds:
        spoken.append((*DIGITS, *TEENS)[rest])
    return " ".join(spoken)


def comparable(text: str, homophones: bool = False) -> str:
    """Lower-case words without punctuation, numbers as separate digits: `May 21st, Four.` is `may 2 1 4`.

    A recogniser writes `42`, `4 2`, `forty two` or `four two` as it likes; here the first and third are
    `4 2` as the others are. Ordinals become plain numbers.

    Args:
      text: any English text.
      homophones: whether `to`, `too`, `for`, `ate`, `won` and `oh` are digits, as they must be in a
        vocabulary that has no such words.
    """
    text = re.sub(r"(?<=\d)(st|nd|rd|th)\b|(?<=\d),(?=\d)", "", text.lower())
    words = re.findall(r"\d|[a-z]+", re.sub(r"['’]", "", text))
    if homophones:
        words = [_HOMOPHONES.get(word, word) for word in words]
    spelled: list[str] = []
    at = 0
    while at < len(words):
        value, length = _number(words[at : at + 5])
        spelled += list(str(value)) if length else [words[at]]
        at += length or 1
    return " ".join(spelled)


def _number(words: list[str]) -> tuple[int, int]:
    """Value of the number that the words begin with, and how many words it takes (0: none)."""
    hundreds = length = 0
    if words[1:2] == ["hundred"] and 0 < _UNITS.get(words[0], 0) < 10:
        hundreds, length = _UNITS[words[0]] * 100, 2
        if words[2:3] == ["and"] and _below_hundred(words[3:])[1]:
            length = 3
    value, more = _below_hundred(words[length:])
    return hundreds + value, length + more


def _below_hundred(words: list[str]) -> tuple[int, int]:
    first, second = (*words, "", "")[:2]
    if first in _DECADES:
        unit = _UNITS.get(second, 0)
        return (_DECADES[first] + unit, 2) if 0 < unit < 10 else (_DECADES[first], 1)
    return (_UNITS[first], 1) if first in _UNITS else (0, 0)
