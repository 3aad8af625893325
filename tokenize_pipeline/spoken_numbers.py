"""Numbers as English words."""

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


def number_in_words(value: int) -> str:
    """Returns a whole number from 0 to 999 in words, such as `three hundred twenty one`."""
    hundreds, rest = divmod(value, 100)
    spoken = [DIGITS[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        spoken += [TENS[rest // 10 - 2], *([DIGITS[rest % 10]] if rest % 10 else [])]
    elif rest or not hundreds:
        spoken.append((*DIGITS, *TEENS)[rest])
    return " ".join(spoken)
