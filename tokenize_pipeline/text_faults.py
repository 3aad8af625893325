"""Decodes the text of files, and finds errors in a text that do not depend on the corpus.

A byte that is not UTF-8 becomes a lone surrogate, as with `surrogateescape`, and NUL becomes
`NUL_MARK`, so that only the row that contains it is rejected. A NUL that is escaped in a JSON
string (as \\u0000) is kept as a character.
"""

from typing import NamedTuple

NUL_MARK = "\udc00"  # the code point that `surrogateescape` would use for byte 0


class TextFault(NamedTuple):
    """The reason why a text is unusable.

    Attributes:
      reason: a key of `tokenize_pipeline.quarantine.REASONS`.
      message: error message without a subject, such as "is empty"; offsets are in bytes of UTF-8.
    """

    reason: str
    message: str


def decode_text(content: bytes) -> str:
    """Decodes bytes to text, with lone surrogates for NUL and for bytes that are not UTF-8."""
    text = content.decode("utf-8", "surrogateescape")
    return text.replace("\0", NUL_MARK) if "\0" in text else text


def text_fault(text: str) -> TextFault | None:
    """Returns why a text is unusable, or None if it is usable."""
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
