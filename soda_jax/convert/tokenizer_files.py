"""Builds an export's tokenizer: the text tokenizer, four markers and a character per audio id.

Audio id `audio_base + i` is written as the character U+E000 + i, as in the released models. SODA's 16,384
audio ids are U+E000–U+11FFF. Real text contains some of these characters, such as U+FE0F in an
emoji, the full-width comma U+FF0C, and U+FFFD. The exported tokenizer converts them to audio ids,
because a prompt is one string. The encoders of soda_jax are not affected, because they receive text
and audio separately. Remove these characters from text before prompting an exported model.

The tokenizer adds no special tokens. A prompt must contain those that it needs, without spaces
between its parts:
`<|begin_of_text|><|text_start|>Hello there.<|text_end|><|audio_start|>`.
"""

import json
from collections.abc import Iterator
from typing import Any

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
# Texts that are encoded for comparison; they contain no character of an audio id.
PROBES = ("a", "Hello there, 12 tokens", "  two  spaces,\n a line\t", "Zwölf 漢字 и مرحبا हिन्दी")


def tokenizer_files(tokenizer: TextTokenizer, layout: VocabularyLayout) -> dict[str, str]:
    """Returns files with which Transformers' `AutoTokenizer` encodes prompts as ids of `layout`.

    Args:
      tokenizer: text tokenizer of the run.
      layout: vocabulary layout of the run.

    Returns:
      contents of tokenizer.json, tokenizer_config.json and special_tokens_map.json by file name.

    Raises:
      UserError: if Transformers cannot represent the tokenizer, or encodes a test text differently.
    """
    description = text_description(tokenizer)
    if make_layout(tokenizer, layout.codebook_sizes) != layout:
        raise UserError(
            f"the vocabulary layout has {layout.text_size} text ids, BOS {layout.bos} and EOS {layout.eos}, "
            f"the tokenizer {tokenizer.fingerprint} has {tokenizer.vocabulary_size}, {tokenizer.bos} and "
            f"{tokenizer.eos}: pass the tokenizer that the run used"
        )
    bos, eos = special_names(tokenizer)
    content = json.dumps(_extended(description, layout), ensure_ascii=False) + "\n"
    check_ids(content, tokenizer, layout, f"the exported {FILE}")
    named: dict[str, Any] = {"bos_token": bos, "eos_token": eos, "pad_token": eos}
    named["additional_special_tokens"] = list(MARKERS)
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
    """Returns the characters of `count` audio ids; raises UserError if Unicode has fewer."""
    if FIRST_CHARACTER + count > _END_OF_UNICODE:
        raise UserError(
            f"{count:,} audio ids need a character each, and Unicode has only "
            f"{_END_OF_UNICODE - FIRST_CHARACTER:,} from U+{FIRST_CHARACTER:X}; use smaller codebooks"
        )
    return "".join(map(chr, range(FIRST_CHARACTER, FIRST_CHARACTER + count)))


def special_names(tokenizer: TextTokenizer) -> tuple[str, str]:
    """Returns the strings that encode BOS and EOS in a prompt."""
    added = text_description(tokenizer).get("added_tokens") or []
    names = {int(token["id"]): token["content"] for token in added}
    return names[tokenizer.bos], names[tokenizer.eos]


def text_description(tokenizer: TextTokenizer) -> dict[str, Any]:
    """Returns the content of a tokenizer.json; raises UserError for a seqio tokenizer."""
    if isinstance(tokenizer, JsonTokenizer):
        return json.loads(tokenizer.content)
    if not isinstance(tokenizer, ByteTokenizer):
        raise UserError(
            "the run's text tokenizer is from seqio and has no tokenizer.json for Transformers: train on "
            "data that `soda retext` has converted to another tokenizer"
        )
    # The tokenizer is a byte-level BPE without merges, whose ids are the bytes. As in encoder.py of
    # GPT-2, printable bytes are written as themselves and the others as U+0100 and following.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {
        chr(byte if byte in printable else 256 + others.index(byte)): byte for byte in range(256)
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
    # `normalized` is False because NFC would replace characters of U+F900–U+FAFF, which are audio
    # ids here.
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


def _extended(description: dict[str, Any], layout: VocabularyLayout) -> dict[str, Any]:
    """Returns a tokenizer.json with markers and audio characters added after the text ids."""
    # lstrip and rstrip are off, because spaces next to a special token are part of the text.
    added = description.get("added_tokens") or []
    text = [{**token, "lstrip": False, "rstrip": False} for token in added]
    taken = {token["content"]: token["id"] for token in text}
    for number, name in enumerate(MARKERS, layout.text_size):
        if name in taken:
            raise UserError(
                f"the text tokenizer already has {name} as id {taken[name]}, but the layout "
                f"assigns it id {number}: use a tokenizer without it"
            )
    # Ids without a piece become added tokens. Those below the largest id of a piece also become
    # pieces, because the tokenizers library ignores the ids of added tokens in the file and
    # numbers them consecutively after the pieces.
    model = description["model"]
    pieces = model["vocab"]
    used = set(pieces.values()) if isinstance(pieces, dict) else set(range(len(pieces)))
    free = sorted(set(range(layout.text_size)) - used - {token["id"] for token in text})
    text += [_added(f"<|unused_{number}|>", number) for number in free]
    inside = {f"<|unused_{number}|>": number for number in free if number < max(used)}
    if inside:
        model = {**model, "vocab": {**pieces, **inside}}
    markers = [_added(name, layout.text_size + i) for i, name in enumerate(MARKERS)]
    characters = audio_characters(layout.size - layout.audio_base)
    audio = [_added(c, layout.audio_base + i, False) for i, c in enumerate(characters)]
    return {
        **description,
        "truncation": None,
        "padding": None,
        "added_tokens": [*sorted(text, key=lambda token: token["id"]), *markers, *audio],
        "post_processor": None,  # it would add BOS to each text
        "model": model,
    }


def check_ids(
    content: str, tokenizer: TextTokenizer, layout: VocabularyLayout, source: str
) -> None:
    """Checks that a tokenizer.json encodes to the ids of `tokenizer` and `layout`.

    BOS, EOS, all markers, all audio characters and some texts are encoded.

    Raises:
      UserError: at the first difference; the message contains `source` and the ids.
    """
    from tokenizers import Tokenizer

    try:
        full = Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{source} is not a tokenizer.json: {error}") from None

    def ids_of(text: str) -> list[int]:
        return full.encode(text, add_special_tokens=False).ids

    bos, eos = special_names(tokenizer)
    markers = zip(MARKERS, range(layout.text_size, layout.audio_base), strict=True)
    for name, wanted in [(bos, layout.bos), (eos, layout.eos), *markers]:
        if ids_of(name) != [wanted]:
            raise UserError(f"{source} encodes {name} as {ids_of(name)}, expected {wanted}")
    characters = audio_characters(layout.size - layout.audio_base)
    if ids_of(characters) != list(range(layout.audio_base, layout.size)):
        for wanted, character in enumerate(characters, layout.audio_base):
            if ids_of(character) != [wanted]:
                raise UserError(
                    f"{source} encodes the audio character U+{ord(character):X} as {ids_of(character)}, "
                    f"expected {wanted}: a text vocabulary with this character as a piece cannot be "
                    "exported; use a byte-level one"
                )
    found = set(full.get_vocab(with_added_tokens=True).values())
    differ = found ^ set(range(layout.size))
    if differ:
        raise UserError(
            f"{source} has {len(found):,} ids, the vocabulary layout has {layout.size:,}: only one "
            f"of the two has id {min(differ)}"
        )
    start, end = MARKERS[:2]
    for text in probes(tokenizer):
        ours = tokenizer.encode(text).tolist()
        between = [layout.bos, *ours, layout.text_start, *ours, layout.text_end, layout.eos]
        for prompt, expected in ((text, ours), (f"{bos}{text}{start}{text}{end}{eos}", between)):
            if ids_of(prompt) != expected:
                raise UserError(
                    f"{source} encodes {prompt!r} as {ids_of(prompt)}, expected {expected}: its treatment "
                    "of spaces depends on their position; use a byte-level tokenizer"
                )


def probes(tokenizer: TextTokenizer) -> Iterator[str]:
    """Yields short texts that `tokenizer` can encode."""
    for text in PROBES:
        try:
            tokenizer.encode(text)
        except UserError:  # a small vocabulary lacks some characters
            continue
        yield text
