"""Text tokenizers of the kinds that are exported."""

import json

import numpy as np

from soda_jax.tokens.text import ByteTokenizer, JsonTokenizer, TextTokenizer, train_bpe
from soda_jax.tokens.vocabulary import MARKERS, VocabularyLayout

TEXTS = [
    "hello there, hello you", "one two three 1 22 333 4444", "zwölf Boxkämpfer jagen", "漢字かな交じり文",
    "the quick brown fox isn't here", "привет мир", "مرحبا بالعالم", "हिन्दी भाषा", "  spaces\n\n lines\t",
]  # fmt: skip
# As Llama-3 cuts text: words with the space before them, at most three digits together.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def added(content: str, number: int, **flags: bool) -> dict:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **plain, **flags}


def changed(tokenizer: JsonTokenizer, **changes: object) -> JsonTokenizer:
    return JsonTokenizer(json.dumps({**json.loads(tokenizer.content), **changes}))


def llama_like(trained: JsonTokenizer) -> JsonTokenizer:
    """BOS put before each text, whole words looked up first, specials that swallow spaces."""
    description = json.loads(trained.content)
    size, bos, eos = trained.vocabulary_size, trained.bos, trained.eos
    names = {token["id"]: token["content"] for token in description["added_tokens"]}
    one = {"id": names[bos], "type_id": 0}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": one}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {names[bos]: {"id": names[bos], "ids": [bos], "tokens": [names[bos]]}},
    }
    split = {
        "type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False
    }  # fmt: skip
    byte_level = {**description["pre_tokenizer"], "use_regex": False}
    return changed(
        trained,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]},
        post_processor=template,
        model={**description["model"], "ignore_merges": True},
        added_tokens=[
            added(names[bos], bos, rstrip=True), added(names[eos], eos, lstrip=True),
            added("<|reserved_0|>", size), added("<tool>", size + 1, special=False),
        ],
    )  # fmt: skip


def qwen_like(trained: JsonTokenizer) -> JsonTokenizer:
    """Text in Unicode's normal form C, which changes some of the audio characters."""
    return changed(trained, normalizer={"type": "NFC"})


def every() -> dict[str, TextTokenizer]:
    trained = train_bpe(TEXTS * 20, 400)
    return {
        "bytes": ByteTokenizer(), "trained": trained, "llama_like": llama_like(trained),
        "qwen_like": qwen_like(trained),
    }  # fmt: skip


def names_of(tokenizer: TextTokenizer) -> dict[int, str]:
    """BOS and EOS by id."""
    if isinstance(tokenizer, JsonTokenizer):
        tokens = json.loads(tokenizer.content)["added_tokens"]
        return {token["id"]: token["content"] for token in tokens}
    return {tokenizer.bos: "<|begin_of_text|>", tokenizer.eos: "<|end_of_text|>"}


def written(ids: np.ndarray, texts: list[str], tokenizer: TextTokenizer, layout: VocabularyLayout):
    """A document as one string: its text spans are `texts`, in order."""
    names = names_of(tokenizer) | dict(enumerate(MARKERS, layout.text_size))
    waiting, parts = list(texts), []
    for token in ids.tolist():
        if layout.ordinary_text[token]:
            continue
        audio = token >= layout.audio_base
        parts.append(chr(0xE000 + token - layout.audio_base) if audio else names[token])
        if token == layout.text_start:
            parts.append(waiting.pop(0))
    return "".join(parts)
