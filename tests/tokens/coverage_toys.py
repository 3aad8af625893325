"""Small tokenizers with each model, pre-tokenizer and normalizer; most of them lose some text."""

import json
from collections.abc import Callable

from soda_jax.tokens.text import JsonTokenizer

LETTERS = "abcdefhilnostuvwxyz'"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def added(content: str, number: int) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


def byte_letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def build(model: dict, pre_tokenizer: dict | None = None, normalizer: dict | None = None):
    """Returns a tokenizer with the model; BOS and EOS have the first free ids."""
    pieces = model["vocab"]
    numbers = pieces.values() if isinstance(pieces, dict) else range(len(pieces))
    first = max(numbers) + 1
    description = {
        "version": "1.0",
        "added_tokens": [added("<s>", first), added("</s>", first + 1)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": model,
    }
    return JsonTokenizer(json.dumps(description))


def numbered(pieces) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(pieces)}


def bpe(letters: str, **settings) -> dict:
    return {"type": "BPE", "vocab": numbered(["<unk>", *letters]), "merges": [], **settings}


def bpe_by_word(letters: str) -> dict:
    """Returns a BPE with four pieces per letter: at the start of a word or not, at its end or not."""
    pieces = [p + c + s for c in letters for p in ("", "##") for s in ("", "</w>")]
    marks = {"continuing_subword_prefix": "##", "end_of_word_suffix": "</w>"}
    return {"type": "BPE", "vocab": numbered(pieces), "merges": [], **marks}


def word_piece(letters: str) -> dict:
    pieces = ["[UNK]", *letters, *("##" + letter for letter in letters)]
    settings = {"unk_token": "[UNK]", "max_input_chars_per_word": 100}
    settings["continuing_subword_prefix"] = "##"
    return {"type": "WordPiece", "vocab": numbered(pieces), **settings}


def unigram(letters: str, unknown: int | None = 0, fallback: bool = False) -> dict:
    pieces = [["<unk>", 0.0], *([letter, -2.0] for letter in letters)]
    pieces += [[piece, -9.0] for piece in BYTES] if fallback else []
    return {"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": fallback}


def byte_level(pieces, **settings) -> dict:
    return {"type": "BPE", "vocab": numbered(pieces), "merges": [], **settings}


# Functions from letters to a model with one piece per letter.
MODELS: dict[str, Callable[[str], dict]] = {
    "bpe without unknown": lambda letters: bpe(letters),
    "bpe with unknown": lambda letters: bpe(letters, unk_token="<unk>"),
    "bpe with fused unknown": lambda letters: bpe(letters, unk_token="<unk>", fuse_unk=True),
    "bpe with an absent unknown": lambda letters: bpe(letters, unk_token="<absent>"),
    "bpe with prefix and suffix": bpe_by_word,
    "word piece": word_piece,
    "unigram": unigram,
    "unigram without unknown": lambda letters: unigram(letters, None),
}
# Pre-tokenizers, and the white space and the other characters that each of them drops.
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": True}
SPLIT = {"type": "Split", "pattern": {"String": "-"}, "invert": False}
PRE_TOKENIZERS: dict[str, tuple[dict | None, bool, str]] = {
    "none": (None, False, ""),
    "whitespace": ({"type": "Whitespace"}, True, ""),
    "whitespace split": ({"type": "WhitespaceSplit"}, True, ""),
    "bert": ({"type": "BertPreTokenizer"}, True, ""),
    "metaspace first": ({**METASPACE, "prepend_scheme": "first"}, False, ""),
    "metaspace always": ({**METASPACE, "prepend_scheme": "always"}, False, ""),
    "metaspace never": ({**METASPACE, "prepend_scheme": "never"}, False, ""),
    "split removed": ({**SPLIT, "behavior": "Removed"}, False, "-"),
    "split isolated": ({**SPLIT, "behavior": "Isolated"}, False, ""),
    "delimiter": ({"type": "CharDelimiterSplit", "delimiter": "-"}, False, "-"),
    "punctuation removed": ({"type": "Punctuation", "behavior": "Removed"}, False, "-',.!"),
    "digits": ({"type": "Digits", "individual_digits": True}, False, ""),
}
