"""Invariant 8 for text: a text is rejected if and only if its ids do not represent it."""

import json
import unicodedata

import pytest
from coverage_toys import (
    BYTES,
    LETTERS,
    METASPACE,
    MODELS,
    PRE_TOKENIZERS,
    bpe,
    build,
    byte_letters,
    byte_level,
    numbered,
    unigram,
    word_piece,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from soda_jax.errors import UserError
from soda_jax.tokens.text import JsonTokenizer, train_bpe

BYTE_LEVEL = dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), False)
BYTE_LEVEL["type"] = "ByteLevel"
# Letters of the test tokenizers, and characters that none of them has.
TEXTS = st.text("ab cé-'▁☃1漢\n", max_size=8).map(lambda text: text.strip())


def lost(tokenizer, text: str) -> str:
    """Returns the end of the error message; "" if the text is encoded."""
    try:
        ids = tokenizer.encode(text)
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        return message.split(" ", 2)[2]
    assert not set(ids.tolist()) & {*tokenizer.specials}
    return ""


@pytest.mark.parametrize("pre_tokenizer", PRE_TOKENIZERS)
@pytest.mark.parametrize("model", MODELS)
@settings(deadline=None, max_examples=40)
@given(text=TEXTS)
def test_invariant_8_a_text_is_rejected_if_and_only_if_a_character_is_lost(
    model, pre_tokenizer, text
):
    step, drops_spaces, drops = PRE_TOKENIZERS[pre_tokenizer]
    for letters in (LETTERS, LETTERS + " ▁-☃"):
        tokenizer = build(MODELS[model](letters), step)
        needed = set(text)
        if step and step["type"] == "Metaspace":
            needed = {"▁" if character == " " else character for character in text}
            prepended = step["prepend_scheme"] != "never" and text and text[0] != "▁"
            needed |= {"▁"} if prepended else set()
        if drops_spaces:
            needed = {character for character in needed if not character.isspace()}
        whole = needed <= set(letters) - set(drops)
        assert bool(lost(tokenizer, text)) == (not whole)


def test_the_error_has_the_first_lost_characters_and_the_stage_that_loses_them():
    space = {"type": "Whitespace"}
    removing = {"type": "Punctuation", "behavior": "Removed"}
    for name in ("bpe without unknown", "bpe with unknown", "bpe with fused unknown", "unigram"):
        tokenizer = build(MODELS[name](LETTERS + " "))
        assert lost(tokenizer, "cafe☃☃ one 漢") == "has no ordinary ids for '☃☃'", name
    assert lost(build(word_piece(LETTERS), space), "a cafés") == "has no ordinary ids for 'é'"
    words = {"type": "WordLevel", "vocab": numbered(["<unk>", "cafe"]), "unk_token": "<unk>"}
    assert lost(build(words, space), "cafe one") == "has no ordinary ids for 'one'"
    both = {"type": "Sequence", "pretokenizers": [removing, space]}
    assert lost(build(bpe(LETTERS), both), "a, b") == "pre-tokenizer deletes ','"
    deleting = {"type": "Replace", "pattern": {"String": "b"}, "content": ""}
    assert lost(build(bpe(LETTERS), both, deleting), "a, b") == "normalizer deletes 'b'"


def test_a_bpe_without_unknown_piece_drops_no_character_silently():
    tokenizer = build(bpe(LETTERS + " "))
    assert lost(tokenizer, "café one 7 two") == "has no ordinary ids for 'é'"
    assert tokenizer.encode("cafe one two").size == 12


@pytest.mark.parametrize("listed", [False, True])
def test_an_unknown_piece_is_rejected_whether_or_not_it_is_an_added_token(listed):
    words = {"type": "WordLevel", "vocab": numbered(["[UNK]", "one", "two"]), "unk_token": "[UNK]"}
    for model, text in ((words, "one three"), (unigram("one two"), "one three")):
        tokenizer = build(model, {"type": "Whitespace"} if model is words else None)
        if listed:
            description = json.loads(tokenizer.content)
            unknown = {**description["added_tokens"][0], "id": 0, "content": "[UNK]"}
            unknown["content"] = "[UNK]" if model is words else "<unk>"
            description["added_tokens"].append(unknown)
            tokenizer = JsonTokenizer(json.dumps(description))
        assert (0 in tokenizer.specials) == listed
        assert lost(tokenizer, text) and not lost(tokenizer, "one two")
        ids = tokenizer.encode("one").tolist()
        assert tokenizer.decode([0, *ids]) == tokenizer.decode(ids) != ""


def test_text_equal_to_the_unknown_piece_of_a_unigram_is_spelled_like_other_text():
    tokenizer = build(unigram("<unk> "))
    assert not lost(tokenizer, "<unk> <unk>")
    assert len(tokenizer.encode("<unk>")) == 5


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=12))
def test_all_bytes_or_byte_fallback_represent_every_text(text):
    for tokenizer in (
        build(byte_level(byte_letters()), BYTE_LEVEL),
        build(bpe("ab", byte_fallback=True, fuse_unk=True) | {"vocab": numbered(["a", *BYTES])}),
        build(unigram("ab ", fallback=True), {**METASPACE, "prepend_scheme": "always"}),
    ):
        assert not lost(tokenizer, text) or "<0x" in text


def test_a_byte_level_vocabulary_without_a_byte_rejects_the_characters_that_need_it():
    # The piece of the first byte has the offsets of the whole character, so the offsets show no gap.
    letters = [letter for letter in byte_letters() if letter != "©"]
    for unknown in ({}, {"unk_token": "a"}):
        tokenizer = build(byte_level(letters, **unknown), BYTE_LEVEL)
        assert lost(tokenizer, "bébé") == "has no ordinary ids for 'é'"
        assert not lost(tokenizer, "bèbè")


def test_byte_fallback_without_a_byte_rejects_the_characters_that_need_it():
    pieces = numbered(["<unk>", *"caf", *(piece for piece in BYTES if piece != "<0xA9>")])
    for settings_of in ({}, {"unk_token": "<unk>"}):
        model = {"type": "BPE", "vocab": pieces, "merges": [], "byte_fallback": True, **settings_of}
        assert lost(build(model), "café") == "has no ordinary ids for 'é'"
        assert not lost(build(model), "cafè")


def test_a_text_that_spells_a_byte_piece_does_not_become_the_byte():
    tokenizer = build(unigram("<0x41> ", fallback=True))
    assert lost(tokenizer, "<0x41>") == "has no ordinary ids for '<0x41>'"
    assert not lost(tokenizer, "<0x4☃ 0x41>")
    model = bpe("ab", byte_fallback=True) | {"vocab": numbered(["a", *BYTES])}
    assert len(build(model).encode("<0x41>")) == 6


NFD_STRIP = [{"type": "NFD"}, {"type": "StripAccents"}]
NORMALIZERS = {
    "nfc": [{"type": "NFC"}],
    "nfkc": [{"type": "NFKC"}],
    "lower case": [{"type": "Lowercase"}],
    "accents": NFD_STRIP,
    "bert": [
        {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": True,
        }
    ],
    "punctuation": [{"type": "Replace", "pattern": {"Regex": "[.,!☃]"}, "content": ""}],
    "llama 2": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NORMALIZERS)
@settings(deadline=None, max_examples=40)
@given(text=st.text("aé\u0301E漢ﬁ1☃.각 \u200d", max_size=8))
def test_a_normalizer_may_change_the_spelling_of_a_text(name, text):
    normalizer = {"type": "Sequence", "normalizers": NORMALIZERS[name]}
    every = build(byte_level(byte_letters()), BYTE_LEVEL, normalizer)
    assert not lost(every, text)
    normal = every._plain.normalizer.normalize_str(text)
    plain = build(byte_level(byte_letters()), BYTE_LEVEL)
    assert every.encode(text).tolist() == plain.encode(normal).tolist()
    few = build(bpe("ae1 ▁"), None, normalizer)
    assert bool(lost(few, text)) == (not set(normal) <= set("ae1 ▁"))


@pytest.mark.parametrize("text", ["zwölf", "漢字", "हिन्दी", "ไทยดี", "ครุ", "1st", "각"])
def test_a_normalizer_that_deletes_letters_digits_or_vowel_signs_loses_the_text(text):
    others = {"type": "Replace", "pattern": {"Regex": "[^a-z .]"}, "content": ""}
    spaces = {**others, "content": " "}
    for normalizer in (others, spaces):
        tokenizer = build(byte_level(byte_letters()), BYTE_LEVEL, normalizer)
        assert lost(tokenizer, f"a {text}.").startswith("normalizer deletes ")
        assert not lost(tokenizer, "a, b.")  # the comma: a normalizer may delete punctuation
    if text in ("हिन्दी", "ไทยดี", "ครุ"):
        stripping = {"type": "Sequence", "normalizers": NFD_STRIP}
        tokenizer = build(byte_level(byte_letters()), BYTE_LEVEL, stripping)
        assert lost(tokenizer, text).startswith("normalizer deletes ")


def test_composed_and_decomposed_accents_give_the_same_ids():
    tokenizer = build(bpe("cafe"), None, {"type": "Sequence", "normalizers": NFD_STRIP})
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert tokenizer.encode(composed).tolist() == tokenizer.encode(decomposed).tolist()


def test_text_equal_to_special_pieces_is_spelled_letter_by_letter():
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], *([letter, -3.0] for letter in "▁<>/sa")]
    for scheme in ("first", "always", "never"):
        space = {**METASPACE, "prepend_scheme": scheme, "split": False}
        description = json.loads(build({"type": "Unigram", "unk_id": 0, "vocab": pieces}).content)
        for number, token in enumerate(description["added_tokens"], 1):
            token["id"] = number
        description |= {"pre_tokenizer": space, "decoder": space}
        tokenizer = JsonTokenizer(json.dumps(description))
        for text in ("</s>", "a </s><s> a", "<s>a</s>", "a</s>s </s> <s>"):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_merge_of_a_special_piece_is_removed_in_both_notations():
    pieces = [*byte_letters(), "<s", "<s>", "<s>a"]
    pairs = [["<", "s"], ["<s", ">"], ["<s>", "a"]]
    for merges in (pairs, [" ".join(pair) for pair in pairs]):
        model = {**byte_level(pieces), "merges": merges}
        description = json.loads(build(model, BYTE_LEVEL).content)
        description["added_tokens"][0]["id"] = pieces.index("<s>")
        tokenizer = JsonTokenizer(json.dumps(description))
        assert not lost(tokenizer, "<s>a")
        assert tokenizer.encode("<s>a").tolist() == [pieces.index(p) for p in ("<s", ">", "a")]


def test_the_words_of_a_trained_word_piece_tokenizer_are_checked():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "<s>", "</s>"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    trained.train_from_iterator(["the quick brown fox, the lazy dog"] * 5, trainer)
    tokenizer = JsonTokenizer(trained.to_str())
    assert not lost(tokenizer, "the lazy fox, the dog")
    assert lost(tokenizer, "the lazy ☃ fox") == "has no ordinary ids for '☃'"


def test_byte_level_tokenizers_need_no_check_of_words():
    # With the check, every word of a corpus would be tokenized twice.
    trained = train_bpe(["hello there"] * 9, 300)
    nfc = JsonTokenizer(json.dumps({**json.loads(trained.content), "normalizer": {"type": "NFC"}}))
    for tokenizer in (trained, nfc):
        check = tokenizer._coverage
        assert not check.may_drop and not check.may_delete


def test_words_with_a_suffix_are_checked_in_a_tokenizer_like_that_of_clip():
    """A Split that removes text between words, then bytes, then a suffix at the end of each word."""
    split = {
        "type": "Split", "pattern": {"Regex": r"'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"},
        "behavior": "Removed", "invert": True,
    }  # fmt: skip
    steps = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    normalizer = {
        "type": "Sequence",
        "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}],
    }
    pieces = [*byte_letters(), *(letter + "</w>" for letter in byte_letters()), "<|endoftext|>"]
    model = byte_level(pieces, end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    tokenizer = build(model, steps, normalizer)
    for text in ("It's  Café ☃\u200d 12", "<|endoftext|>", "a\n\tb"):
        assert not lost(tokenizer, text)
    few = build(byte_level(pieces[:40] + pieces[256:], end_of_word_suffix="</w>"), steps)
    assert lost(few, "! Café").startswith("has no ordinary ids for ")
    letters = build(model, {**split, "pattern": {"Regex": r"\p{L}+"}})
    assert lost(letters, "one, two") == "pre-tokenizer deletes ','"


def test_merge_dropout_of_a_tokenizer_file_does_not_change_ids_between_calls():
    trained = train_bpe(["hello there"] * 9, 300)
    description = json.loads(trained.content)
    description["model"]["dropout"] = 0.5
    tokenizer = JsonTokenizer(json.dumps(description))
    for _ in range(20):
        assert tokenizer.encode("hello there").tolist() == trained.encode("hello there").tolist()
