"""The tokenizer of an export: the text tokenizer, the four markers and a character for each audio id.

Audio id `audio_base + i` is written as the character U+E000 + i, as in the released models. For the
suite's 16,384 audio ids these are U+E000–U+11FFF, and real text has some of them: U+FE0F of an emoji, the
full-width comma U+FF0C, U+FFFD. In such a text the exported tokenizer sees sound. It cannot be helped
there, because a prompt is one string; our own encoders take text apart from sound and never have the
fault. Whoever prompts an exported model with text from elsewhere removes these characters first.

Nothing is added to a text by itself. A prompt is whole, without spaces between its parts:
`<|begin_of_text|><|text_start|>Hello there.<|text_end|><|audio_start|>`.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.files import json_text
from soda_jax.tokens.text import (
    BOS_NAMES,
    EOS_NAMES,
    ByteTokenizer,
    JsonTokenizer,
    TextTokenizer,
    make_layout,
)
from soda_jax.tokens.vocabulary import MARKERS, VocabularyLayout

FILE = "tokenizer.json"
FIRST_CHARACTER = 0xE000
_END_OF_UNICODE = 0x110000
# None of their characters is that of an audio id.
PROBES = ("a", "Hello there, 12 tokens", "  two  spaces,\n a line\t", "Zwölf 漢字 и مرحبا हिन्दी")


def tokenizer_files(tokenizer: TextTokenizer, layout: VocabularyLayout) -> dict[str, str]:
    """What Transformers' `AutoTokenizer` reads, so that a prompt string becomes our ids.

    Args:
      tokenizer: of the run's text.
      layout: its vocabulary.

    Returns:
      contents of tokenizer.json, tokenizer_config.json and special_tokens_map.json by file name.

    Raises:
      UserError: for a tokenizer that Transformers has no form of, or one whose ids come out otherwise
        than ours; what is returned has been tried.
    """
    description = text_description(tokenizer)
    if make_layout(tokenizer, layout.codebook_sizes) != layout:
        raise UserError(
            f"the vocabulary layout with {layout.text_size} text ids, BOS {layout.bos} and EOS {layout.eos} "
            f"is not of the tokenizer {tokenizer.fingerprint}, which has {tokenizer.vocabulary_size}, "
            f"{tokenizer.bos} and {tokenizer.eos}: give the run's own tokenizer"
        )
    bos, eos = special_names(tokenizer)
    content = json.dumps(_extended(description, layout), ensure_ascii=False) + "\n"
    check_ids(content, tokenizer, layout, f"the exported {FILE}")
    named = {"bos_token": bos, "eos_token": eos, "pad_token": eos}
    named["additional_special_tokens"] = list(MARKERS)  # type: ignore[assignment]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
    }
    return {
        FILE: content,
        "tokenizer_config.json": json_text(settings),
        "special_tokens_map.json": json_text(named),
    }


def audio_characters(count: int) -> str:
    """The characters of the first `count` audio ids; UserError where Unicode has not so many."""
    if FIRST_CHARACTER + count > _END_OF_UNICODE:
        raise UserError(
            f"{count:,} audio ids have no characters: Unicode has "
            f"{_END_OF_UNICODE - FIRST_CHARACTER:,} from U+{FIRST_CHARACTER:X}; use smaller codebooks"
        )
    return "".join(map(chr, range(FIRST_CHARACTER, FIRST_CHARACTER + count)))


def special_names(tokenizer: TextTokenizer) -> tuple[str, str]:
    """How BOS and EOS are written in a prompt."""
    added = text_description(tokenizer).get("added_tokens") or []
    names = {int(token["id"]): token["content"] for token in added}
    return names[tokenizer.bos], names[tokenizer.eos]


def text_description(tokenizer: TextTokenizer) -> dict[str, Any]:
    """A text tokenizer as the object of a tokenizer.json; UserError for those of seqio."""
    if isinstance(tokenizer, JsonTokenizer):
        return json.loads(tokenizer.content)
    if isinstance(tokenizer, ByteTokenizer):
        return _byte_description()
    raise UserError(
        "the run's text tokenizer is one of seqio, for which Transformers has no tokenizer.json: train "
        "on data that `soda retext` has brought to another tokenizer"
    )


def _byte_description() -> dict[str, Any]:
    """A byte-level BPE without merges: the id of a byte is the byte."""
    # The letters by which a byte-level vocabulary writes bytes (GPT-2, encoder.py): what prints stands
    # for itself, the rest for U+0100 and on.
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in prints]
    letters = {
        chr(byte if byte in prints else 256 + others.index(byte)): byte for byte in range(256)
    }
    byte_level: dict[str, Any] = {"type": "ByteLevel"}
    byte_level |= dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), False)
    return {
        "version": "1.0",
        "added_tokens": [_added(BOS_NAMES[0], 256), _added(EOS_NAMES[0], 257)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": letters, "merges": []},
    }


def _added(content: str, number: int, special: bool = True) -> dict[str, Any]:
    # Not normalized: NFC alone makes other characters of U+F900–U+FAFF, which stand for sound here.
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


def _extended(description: dict[str, Any], layout: VocabularyLayout) -> dict[str, Any]:
    """The description with markers and audio characters behind its text ids."""
    # What stands beside a special token is text, its spaces included.
    text = [
        {**token, "lstrip": False, "rstrip": False}
        for token in description.get("added_tokens") or []
    ]
    taken = {token["content"]: token["id"] for token in text}
    for name in MARKERS:
        if name in taken:
            raise UserError(
                f"the text tokenizer already has {name}, as id {taken[name]}, and ours is "
                f"{layout.text_size + MARKERS.index(name)}: use a tokenizer without it"
            )
    model, fillers = _filled(description["model"], text, layout.text_size)
    markers = [_added(name, layout.text_size + i) for i, name in enumerate(MARKERS)]
    characters = audio_characters(layout.size - layout.audio_base)
    audio = [_added(c, layout.audio_base + i, False) for i, c in enumerate(characters)]
    return {
        **description,
        "truncation": None,
        "padding": None,
        "added_tokens": [*sorted(text + fillers, key=lambda t: t["id"]), *markers, *audio],
        "post_processor": None,  # it would put BOS before each text
        "model": model,
    }


def _filled(
    model: dict[str, Any], added: list[dict[str, Any]], size: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Names for ids that no piece has: the model with those inside it, and all as added tokens.

    The library numbers added tokens without a gap behind the model's pieces, whatever the file says.
    """
    pieces = model["vocab"]
    used = set(pieces.values()) if isinstance(pieces, dict) else set(range(len(pieces)))
    holes = sorted(set(range(size)) - used - {token["id"] for token in added})
    fillers = [_added(f"<|unused_{hole}|>", hole) for hole in holes]
    inside = {token["content"]: token["id"] for token in fillers if token["id"] < max(used)}
    return ({**model, "vocab": {**pieces, **inside}} if inside else model), fillers


def check_ids(
    content: str, tokenizer: TextTokenizer, layout: VocabularyLayout, source: str
) -> None:
    """Tries a tokenizer.json: all ids of `layout`, and text alone and between markers as `tokenizer`.

    Raises:
      UserError: naming `source`, what differs and both ids.
    """
    from tokenizers import Tokenizer

    try:
        full = Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{source} is not a tokenizer.json: {error}") from None

    def ids_of(text: str) -> np.ndarray:
        return np.array(full.encode(text, add_special_tokens=False).ids, np.int64)

    bos, eos = special_names(tokenizer)
    names = [*zip(MARKERS, range(layout.text_size, layout.audio_base), strict=True)]
    for name, wanted in [(bos, layout.bos), (eos, layout.eos), *names]:
        if ids_of(name).tolist() != [wanted]:
            raise UserError(f"{source} makes {ids_of(name).tolist()} of {name}, which is {wanted}")
    characters = audio_characters(layout.size - layout.audio_base)
    if ids_of(characters).tolist() != list(range(layout.audio_base, layout.size)):
        for wanted, character in enumerate(characters, layout.audio_base):
            if ids_of(character).tolist() != [wanted]:
                raise UserError(
                    f"{source} makes {ids_of(character).tolist()} of the audio character "
                    f"U+{ord(character):X}, which is {wanted}: a text vocabulary that has this "
                    "character as a piece cannot be exported; use a byte-level one"
                )
    found = set(full.get_vocab(with_added_tokens=True).values())
    differ = found ^ set(range(layout.size))
    if differ:
        raise UserError(
            f"{source} has {len(found):,} ids, the vocabulary layout {layout.size:,}: id {min(differ)} is "
            "in one of them alone"
        )
    start, end = MARKERS[:2]
    for text in probes(tokenizer):
        ours = tokenizer.encode(text)
        between = [layout.bos, *ours, layout.text_start, *ours, layout.text_end, layout.eos]
        for prompt, expected in ((text, ours), (f"{bos}{text}{start}{text}{end}{eos}", between)):
            if ids_of(prompt).tolist() != list(expected):
                raise UserError(
                    f"{source} makes {ids_of(prompt).tolist()} of {prompt!r}, ours is "
                    f"{list(map(int, expected))}: it treats spaces by place; use a byte-level tokenizer"
                )


def probes(tokenizer: TextTokenizer) -> Iterator[str]:
    """Short texts that `tokenizer` can write."""
    for text in PROBES:
        try:
            tokenizer.encode(text)
        except UserError:  # a small vocabulary has not all characters
            continue
        yield text
