"""Checks that the ids from a `tokenizer.json` represent the complete text.

A tokenizer has three stages, and each stage can lose characters without an error:

    normalizer      may change the spelling (NFC, case, accents), but not delete letters or digits
    pre-tokenizer   may drop the white space between words, but nothing else
    model           must represent every character of its input words

The check does not compare decoded text, because many tokenizers have no decoder, or a decoder that
changes the spelling.
"""

import unicodedata
from typing import Any

import numpy as np

from soda_jax.errors import UserError

# These normalizers may change the spelling or add characters, but delete only white space.
_NEVER_DELETE = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Strip", "ByteLevel")
# These pre-tokenizers drop only white space, as do Split and Punctuation unless their behavior is
# "Removed".
_KEEP_WORDS = (
    *("BertPreTokenizer", "ByteLevel", "Digits", "FixedLength", "Metaspace", "UnicodeScripts"),
    *("Whitespace", "WhitespaceSplit"),
)
_SPACE = "▁"  # the character that SentencePiece uses for a space
_SHOWN = 40  # characters of a text in an error message
_LONGEST_KEPT, _MOST_KEPT = 32, 1 << 17  # maximum length and maximum number of cached words


class CoverageCheck:
    """Rejects texts that the ids of a tokenizer do not represent.

    Most models return the id of the unknown token for text that they cannot represent, so checking
    the ids is sufficient; a byte-level BPE with all bytes represents every text. If a model or a
    pre-tokenizer may drop text without an error, each word is checked, and short words are cached.
    """

    def __init__(self, description: dict[str, Any], tokenizer: Any, refused: np.ndarray):
        """Determines which stages of a tokenizer may lose text.

        Args:
          description: the JSON object in the `tokenizer.json`.
          tokenizer: the `tokenizers.Tokenizer` of `description`.
          refused: bool `[vocabulary_size]`, True for ids that represent no text (special or
            unknown).
        """
        self._normalizer, self._pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        self._model, self._refused = tokenizer.model, refused
        self._kind = type(self._model).__name__
        settings = description["model"]
        word_piece = "##" if self._kind == "WordPiece" else ""
        self._prefix = settings.get("continuing_subword_prefix") or word_piece
        self._suffix = settings.get("end_of_word_suffix") or ""
        self._byte_pieces: dict[str, int] = {}
        if settings.get("byte_fallback"):
            self._byte_pieces = {f"<0x{byte:02X}>": byte for byte in range(256)}
        steps = _steps(description, "pre_tokenizer")
        marks_unknown = self._kind != "BPE" or settings.get("unk_token") is not None
        keeps_words = all(map(_keeps_words, steps))
        self.may_drop = not (keeps_words and (marks_unknown or self._has_all_bytes(steps)))
        self.may_delete = not all(map(_never_deletes, _steps(description, "normalizer")))
        self._kept_characters: set[str] = set()
        self._kept_words: set[str] = set()

    def check(self, text: str, ids: np.ndarray | None) -> None:
        """Checks that `ids` represent `text`.

        Args:
          text: the text before normalization.
          ids: the ids from the tokenizer; None if the tokenizer raised an error.

        Raises:
          UserError: if text is lost. The message contains the first lost characters and the stage
            that loses them.
        """
        if self.may_delete:
            self._check_normalizer(text)
        bad = ids is None or self._refused[ids].any()
        # A text that contains the name of a byte piece may be encoded as that byte.
        if bad or self.may_drop or (self._byte_pieces and "<0x" in text):
            self._check_words(self._normalizer.normalize_str(text) if self._normalizer else text)
        if bad:  # each word is represented separately, but not the whole text
            raise _not_represented(text)

    def _has_all_bytes(self, steps: list[dict[str, Any]]) -> bool:
        """Returns whether a BPE after the pre-tokenizer `steps` has pieces for all bytes."""
        if self._prefix or self._suffix:
            return False
        if self._byte_pieces:
            return all(map(self._is_piece, self._byte_pieces))
        from tokenizers.pre_tokenizers import ByteLevel

        by_byte = any(step.get("type") == "ByteLevel" for step in steps)
        return by_byte and all(map(self._is_piece, ByteLevel.alphabet()))

    def _is_piece(self, piece: str) -> bool:
        number = self._model.token_to_id(piece)
        return number is not None and not self._refused[number]

    def _check_normalizer(self, text: str) -> None:
        for character in sorted(set(text) - self._kept_characters):
            written = self._normalizer.normalize_str(character).replace(_SPACE, "")
            if _distinguishes_words(character) and not written.strip():
                raise UserError(f"the tokenizer's normalizer deletes {character!r}")
            self._kept_characters.add(character)

    def _check_words(self, text: str) -> None:
        """Checks each word of a normalized text."""
        end = 0
        for word, (first, last) in [*self._words(text), ("", (len(text), len(text)))]:
            dropped = text[end:first].replace(_SPACE, "").strip()
            if dropped:
                raise UserError(f"the tokenizer's pre-tokenizer deletes {dropped[:_SHOWN]!r}")
            end = last
            if word not in self._kept_words and not self._represents(word):
                raise _not_represented(self._first_lost(text[first:last] or word))

    def _words(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        """Returns the words that the model receives, and the range of each word in `text`."""
        if self._pre_tokenizer is None:
            return [(text, (0, len(text)))]
        return self._pre_tokenizer.pre_tokenize_str(text)

    def _represents(self, word: str) -> bool:
        """Returns whether the concatenated pieces of a word equal the word."""
        try:
            tokens = self._model.tokenize(word) if word else []
        except Exception:  # the library raises a bare Exception if there is no unknown token
            return False
        if any(self._refused[token.id] for token in tokens):
            return False
        pieces = [token.value for token in tokens]
        pieces[1:] = [piece.removeprefix(self._prefix) for piece in pieces[1:]]
        pieces[-1:] = [piece.removesuffix(self._suffix) for piece in pieces[-1:]]
        same = "".join(pieces) == word
        if any(piece in self._byte_pieces for piece in pieces):
            parts = (
                bytes([self._byte_pieces[piece]]) if piece in self._byte_pieces else piece.encode()
                for piece in pieces
            )
            same = b"".join(parts) == word.encode()
        if same and len(word) <= _LONGEST_KEPT and len(self._kept_words) < _MOST_KEPT:
            self._kept_words.add(word)
        return same

    def _first_lost(self, word: str) -> str:
        """Returns the first lost characters; the whole word if no single character is lost."""
        if self._kind == "WordLevel":
            return word
        lost = [
            not all(self._represents(part) for part, _ in self._words(character))
            for character in word
        ]
        if not any(lost):
            return word
        first = lost.index(True)
        return word[first : [*lost, False].index(False, first)]


def _not_represented(text: str) -> UserError:
    return UserError(f"the tokenizer has no ordinary ids for {text[:_SHOWN]!r}")


def _steps(description: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    """Returns the steps of a stage, with sequences flattened."""
    waiting = [description.get(stage)]
    found = []
    while waiting:
        step = waiting.pop(0)
        if step and step.get("type") == "Sequence":
            waiting = [*(step.get("normalizers") or step.get("pretokenizers") or ()), *waiting]
        elif step:
            found.append(step)
    return found


def _never_deletes(step: dict[str, Any]) -> bool:
    """Returns whether a normalizer deletes nothing but white space."""
    if step.get("type") == "Replace":  # SentencePiece tokenizers replace spaces with "▁"
        return step["pattern"].get("String", "").isspace()
    return step.get("type") in _NEVER_DELETE


def _keeps_words(step: dict[str, Any]) -> bool:
    """Returns whether a pre-tokenizer drops nothing but white space."""
    if step.get("type") in ("Split", "Punctuation"):
        return step.get("behavior") != "Removed"
    return step.get("type") in _KEEP_WORDS


def _distinguishes_words(character: str) -> bool:
    """Returns whether a normalizer must not delete a character.

    These characters are letters, digits, vowel signs and most marks of combining class 0. Accents
    may be deleted, both in a single code point ("é" becomes "e") and as combining marks.
    """
    if character.isalnum():
        return True
    if unicodedata.category(character) not in ("Mc", "Mn"):
        return False
    name = unicodedata.name(character, "")
    if not unicodedata.combining(character):
        return "SELECTOR" not in name and "JOINER" not in name
    return "VOWEL" in name or "SARA" in name
