"""A prompt string in Transformers' form becomes exactly our ids."""

import json

import numpy as np
import pytest
from tokenizer_toys import added, changed, every, names_of, written
from tokenizers import Tokenizer

from soda_jax.convert.tokenizer_files import PROBES, audio_characters, tokenizer_files
from soda_jax.errors import UserError
from soda_jax.tokens.documents import Utterance, View, render
from soda_jax.tokens.text import ByteTokenizer, JsonTokenizer, make_layout
from soda_jax.tokens.vocabulary import MARKERS
from tokenize_pipeline.seqio_support import SeqioTokenizer

KINDS = ("bytes", "trained", "llama_like", "qwen_like")
SIZES = (40, 7, 19)
TEXTS = [
    "Hello there.", "it's 12345678 o'clock, 3.14%", "  two  spaces ", "\ttab\n\nlines\r\n \n", "zwölf Boxkämpfer",
    "漢字かな交じり文、です。", "Привет, мир!", "مرحبا بالعالم", "हिन्दी भाषा", "e\u0301 A\u030a ﬁ ½ ②", "👩‍👩‍👧‍👦 🇬🇧 😀",
    "a" * 300, "snake_case CamelCase HTTP2 https://example.org/?q=1", "nul \x00 bell \x07", "…—“quoted”", " ", "\n",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers():
    return every()


@pytest.fixture(scope="module", params=KINDS)
def case(request, tokenizers):
    """(our tokenizer, its layout, the exported one)."""
    tokenizer = tokenizers[request.param]
    layout = make_layout(tokenizer, SIZES)
    return tokenizer, layout, opened(tokenizer, layout)


def opened(tokenizer, layout):
    return Tokenizer.from_str(tokenizer_files(tokenizer, layout)["tokenizer.json"])


def test_a_document_as_a_string_has_the_ids_of_the_document(case):
    tokenizer, layout, exported = case
    rng = np.random.default_rng(0)
    for order in ("text_first", "audio_first"):
        texts = [TEXTS[0], TEXTS[2], TEXTS[5]]
        utterances = [
            Utterance(t, tokenizer.encode(t), rng.integers(0, SIZES, (4, 3)).astype(np.uint16))
            for t in texts
        ]
        ids = render(utterances, View(order), layout)
        string = written(ids, texts, tokenizer, layout)
        assert exported.encode(string).ids == ids.tolist()
        # Decoding without special tokens gives text and audio characters.
        if exported.normalizer is None:
            assert exported.decode(ids.tolist(), skip_special_tokens=False) == string
            for name in (*MARKERS, *names_of(tokenizer).values()):
                string = string.replace(name, "")
            assert exported.decode(ids.tolist()) == string


def test_text_has_the_ids_of_our_encoder_with_and_without_markers(case):
    tokenizer, layout, exported = case
    for text in TEXTS:
        ours = tokenizer.encode(text).tolist()
        # No template adds BOS.
        assert exported.encode(text).ids == ours
        spoken = exported.encode(f"{MARKERS[3]}{MARKERS[0]}{text}{MARKERS[1]}{MARKERS[2]}").ids
        first = layout.text_size
        assert spoken == [first + 3, first, *ours, first + 1, first + 2]


def test_every_id_of_the_layout_has_a_unique_string(case):
    _, layout, exported = case
    vocabulary = exported.get_vocab(with_added_tokens=True)
    assert sorted(vocabulary.values()) == list(range(layout.size))
    for id_ in range(layout.audio_base, layout.size):
        character = chr(0xE000 + id_ - layout.audio_base)
        assert vocabulary[character] == id_
        # The spaces next to it remain text.
        assert exported.encode(f"a {character} a").ids.count(id_) == 1
        assert exported.decode([id_]) == character


def test_only_the_exported_tokenizer_converts_real_text_to_audio_ids(tokenizers):
    tokenizer = tokenizers["trained"]
    layout = make_layout(tokenizer, (2048,) * 8)
    exported = opened(tokenizer, layout)
    for text, character in (
        ("I ❤️ you", "\ufe0f"), ("好，你好", "\uff0c"), ("broken \ufffd", "\ufffd"), ("\uf900", "\uf900")
    ):  # fmt: skip
        collides = layout.audio_base + ord(character) - 0xE000
        assert character in text and collides in exported.encode(text).ids
        ours = tokenizer.encode(text)
        assert layout.ordinary_text[ours].all() and tokenizer.decode(ours) == text
    # The last audio character, and the next character.
    assert exported.encode("\U00011fff").ids == [layout.size - 1]
    assert max(exported.encode("\U00012000").ids) < layout.text_size
    # The probes contain no audio character.
    assert not set("".join(PROBES)) & set(audio_characters(16_384))


def test_a_character_that_normalization_changes_keeps_its_id(tokenizers):
    layout = make_layout(tokenizers["qwen_like"], (2048,) * 8)
    exported = opened(tokenizers["qwen_like"], layout)
    id_ = layout.audio_base + 0xF900 - 0xE000  # U+F900 is U+8C48 in form C
    assert exported.encode("\uf900").ids == [id_] and exported.decode([id_]) == "\uf900"


@pytest.mark.parametrize(
    ("ids", "reserved"),
    [([0, 1, 2, 3, 4], [9, 10]), ([0, 1, 2, 5, 9], [11, 12]), ([0, 3, 4, 5, 6], [7, 9])],
    ids=["after", "inside", "between"],
)
def test_ids_without_a_piece_get_a_name_and_keep_their_number(ids, reserved):
    byte_level = dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), False)
    byte_level |= {"type": "ByteLevel"}
    model = {"type": "BPE", "vocab": dict(zip("abcde", ids, strict=True)), "merges": []}
    description = {
        "version": "1.0", "pre_tokenizer": byte_level, "decoder": byte_level, "model": model,
        "added_tokens": [added("<s>", reserved[0]), added("</s>", reserved[1])],
    }  # fmt: skip
    tokenizer = JsonTokenizer(json.dumps(description))
    layout = make_layout(tokenizer, (4, 4))
    assert layout.text_size == reserved[1] + 1
    # Without names the library would number them differently.
    assert Tokenizer.from_str(json.dumps(description)).token_to_id("</s>") != reserved[1]
    exported = opened(tokenizer, layout)
    found = exported.encode("<s>edcba</s><|audio_start|>\ue000\ue007").ids
    base = layout.audio_base
    assert found == [reserved[0], *ids[::-1], reserved[1], base - 2, base, base + 7]
    assert sorted(exported.get_vocab().values()) == list(range(layout.size))


def test_settings_name_the_special_tokens_and_add_none_to_text(tokenizers):
    tokenizer = tokenizers["llama_like"]
    files = tokenizer_files(tokenizer, make_layout(tokenizer, SIZES))
    settings = json.loads(files["tokenizer_config.json"])
    named = json.loads(files["special_tokens_map.json"])
    names = names_of(tokenizer)
    assert (named["bos_token"], named["eos_token"]) == (names[tokenizer.bos], names[tokenizer.eos])
    assert settings["pad_token"] == named["eos_token"] and settings["padding_side"] == "left"
    assert named["additional_special_tokens"] == list(MARKERS)
    assert not settings["add_bos_token"] and not settings["clean_up_tokenization_spaces"]


def refused(tokenizer, match, layout=None):
    with pytest.raises(UserError, match=match) as caught:
        tokenizer_files(tokenizer, layout or make_layout(tokenizer, SIZES))
    assert "\n" not in str(caught.value)


def unigram(pieces, scheme="always"):
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    pieces = [[piece, -1.0] for piece in ("<unk>", "<s>", "</s>", *"abcHelo, thr12kns▁", *pieces)]
    model = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
    specials = [added(piece, i) for i, (piece, _) in enumerate(pieces[:3])]
    return JsonTokenizer(
        json.dumps(
            {
                "version": "1.0", "added_tokens": specials, "model": model,
                "pre_tokenizer": space, "decoder": space,
            }
        )
    )  # fmt: skip


def test_what_cannot_be_exported_is_refused_with_the_reason(tokenizers):
    refused(object.__new__(SeqioTokenizer), "soda retext", make_layout(ByteTokenizer(), SIZES))
    trained = tokenizers["trained"]
    tokens = json.loads(trained.content)["added_tokens"]
    taken = changed(trained, added_tokens=[*tokens, added("<|audio_start|>", trained.eos + 1)])
    refused(taken, rf"already has <\|audio_start\|> as id {trained.eos + 1}, but the layout")
    tokenizer_files(unigram([]), make_layout(unigram([]), SIZES))
    piece = chr(0xE000 + 45)
    refused(unigram([piece]), "U[+]E02D as .*: a text vocabulary with this character")
    refused(unigram([], "first"), "expected .*: its treatment of spaces depends on their position")
    refused(trained, "pass the tokenizer that the run used", make_layout(ByteTokenizer(), SIZES))
    refused(trained, "audio ids need a character each", make_layout(trained, (2048,) * 600))
