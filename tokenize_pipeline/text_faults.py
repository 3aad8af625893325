"""Text as readers give it, and what is wrong with it whatever corpus it is from.

A byte of a file that cannot be part of its text becomes a lone surrogate, so that the row that contains it
is judged as a whole and the other rows stay: bytes that are not UTF-8 as `surrogateescape` has it, and NUL
as `NUL_MARK`. A NUL that a JSON string spells out (as \\u0000) is a character of that text.
"""

from typing import NamedTuple

NUL_MARK = "\udc00"  # where `surrogateescape` would put byte 0


class TextFault(NamedTuple):
    """Why a text cannot be used.

    Attributes:
      reason: a key of `tokenize_pipeline.quarantine.REASONS`.
      message: what is wrong, without a subject; offsets are bytes of the text in UTF-8, from 0.
    """

    reason: str
    message: str


def decode_text(content: bytes) -> str:
    """The text of some bytes, with lone surrogates for NUL and for bytes that are not UTF-8."""
    text = content.decode("utf-8", "surrogateescape")
    return text.replace("\0", NUL_MARK) if "\0" in text else text


def text_fault(text: str) -> TextFault | None:
    """What is wrong with a text; None if nothing is."""
    if not text:
        return TextFault("empty_text", "is empty")
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        offset = len(text[: error.start].encode("utf-8"))
        if code == ord(NUL_MARK):
            return TextFault("nul", f"contains NUL (U+0000) at byte offset {offset}: remove it")
        what = f"byte 0x{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
        return TextFault("invalid_utf8", f"is not valid UTF-8: {what} at byte offset {offset}")
    return None
