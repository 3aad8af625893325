"""Detects text that is not UTF-8, so that every reader reports it in the same way.

Readers take UTF-8, with or without a byte order mark. UTF-16 and UTF-32 are recognized by their byte
order mark, or by the positions of their NUL bytes, and are reported by name. They are not converted: a
file may contain several encodings (if a shell appended UTF-16 to UTF-8).
"""

import codecs
import re

from soda_jax.errors import UserError

HEAD_BYTES = 4096  # at the beginning of a file, used to detect its encoding
# The mark of UTF-16-LE is the beginning of that of UTF-32-LE.
_MARKS = (
    ("UTF-32-LE", codecs.BOM_UTF32_LE),
    ("UTF-32-BE", codecs.BOM_UTF32_BE),
    ("UTF-16-LE", codecs.BOM_UTF16_LE),
    ("UTF-16-BE", codecs.BOM_UTF16_BE),
)
_FIRST_OF_MARKS = {mark[:1] for _, mark in _MARKS}
_UNITS = {"UTF-32-LE": 4, "UTF-32-BE": 4, "UTF-16-LE": 2, "UTF-16-BE": 2}
_SPACE_OF_UTF8 = re.compile(rb"(?<=[\t\n\r -~\x80-\xff])[ \n](?=[\t\n\r -~\x80-\xff]|\Z)")


def other_encoding(head: bytes) -> str | None:
    """Returns the encoding of a text that begins with `head`; None for UTF-8 and unknown encodings.

    Args:
      head: the first bytes of the text, at least `HEAD_BYTES` or the whole text.
    """
    if head[:1] in _FIRST_OF_MARKS:
        for name, mark in _MARKS:
            if head.startswith(mark):
                return name
    head = head[:HEAD_BYTES]
    if b"\0" not in head:
        return None
    return next((name for name in _UNITS if _may_be(head, name)), None)


def _may_be(head: bytes, name: str) -> bool:
    """Whether bytes with NULs are text in this encoding rather than UTF-8 with stray NULs."""
    unit = _UNITS[name]
    head = head[: len(head) // unit * unit]
    try:
        # A surrogate pair that is cut by the end of `head` is left out.
        text = codecs.getincrementaldecoder(name)().decode(head)
    except UnicodeDecodeError:
        return False
    if not text or "\0" in text:
        return False
    if unit == 4:  # a quarter of the bytes is NUL, and no character is beyond U+10FFFF
        return True
    # A space or line end of UTF-16 has a NUL next to it, one of UTF-8 has letters or others on both sides.
    spaces, spaces_of_utf8 = text.count(" ") + text.count("\n"), len(_SPACE_OF_UTF8.findall(head))
    if spaces or spaces_of_utf8:
        return spaces > spaces_of_utf8
    return 4 * sum(character < "\u0100" for character in text) >= 3 * len(text)


def check_encoding(head: bytes, name: str) -> None:
    """Raises UserError with the name of the encoding if text that begins with `head` is not UTF-8.

    Args:
      head: see `other_encoding`.
      name: name of the file, for the message.
    """
    if (encoding := other_encoding(head)) is not None:
        raise UserError(f"{name} is {encoding} text: {_fix(encoding)}")


def _fix(encoding: str) -> str:
    source = encoding.replace("-LE", "LE").replace("-BE", "BE")
    return f"convert it to UTF-8, as in iconv -f {source} -t UTF-8 FILE > NEW"
