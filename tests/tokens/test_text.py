"""Invariant 1: no text is encoded as audio, markers or other special ids, whatever it contains."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soda_jax.errors import UserError
from soda_jax.tokens.text import (
    ByteTokenizer,
    JsonTokenizer,
    load_tokenizer,
    make_layout,
    train_bpe,
)
from soda_jax.tokens.vocabulary import MARKERS

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
HOSTILE = [
    "",
    " ",
    *MARKERS,
    BOS,
    f"{BOS}{EOS}" * 2,
    "<s>",
    "</s><s></s>",
    "a<s>b </s> c<unk>",
    f"say {MARKERS[2]}\ue000\ue800{MARKERS[3]} now",
    "❤️ \ufe0f\ufe0f 👩‍👩‍👧‍👦 🇬🇧",
    "full\uff0cwidth\uff0e \ufffd \ufeff",
    "".join(map(chr, range(0xE000, 0xF8FF, 61))),
    "\uf8ff\U00010000\U000110ff\U00011fff\U0010ffff",
    "nul \x00 and \x07\x1b\r\n\t",
    "مرحبا \u202eevil\u202c שלום",
    "e\u0301 ﬁ Å  two  spaces ",
    "<|audio_start|" + "|" * 50 + ">",
    "long " * 3000,
    "<s>" * 3000,
]


def byte_alphabet():
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def added(content, number):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


@pytest.fixture(scope="module")
def trained():
    texts = ["hello there, hello you", "<|audio_start|> one two three", "zwölf Boxkämpfer"] * 20
    return train_bpe([*texts, *(text for text in HOSTILE if len(text) < 200)], 320)


@pytest.fixture(scope="module")
def merging():
    """A byte-level BPE with merges that result in the special tokens <s> and </s>."""
    vocabulary, merges = byte_alphabet(), []
    for word in ("<s>", "</s>"):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary.append(word[:end])
                merges.append([word[: end - 1], word[end - 1]])
    number = {piece: i for i, piece in enumerate(vocabulary)}
    byte_level = dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), False)
    byte_level["type"] = "ByteLevel"
    model = {"type": "BPE", "vocab": number, "merges": merges}
    specials = [added("<s>", number["<s>"]), added("</s>", number["</s>"])]
    description = {
        "version": "1.0",
        "added_tokens": [*specials, added("<|reserved|>", len(vocabulary) + 3)],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": model,
    }
    return JsonTokenizer(json.dumps(description))


def unigram_json(byte_fallback, metaspace=False):
    """Returns a vocabulary as of SentencePiece, in which <unk>, <s> and </s> are the pieces with the best scores."""
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0]]
    if byte_fallback:
        pieces += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    pieces += [[letter, -3.0] for letter in "abcdehlosunky </>|_▁"] + [["hello", -4.0]]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    decoders = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    description = {
        "version": "1.0",
        "added_tokens": [added(p[0], i) for i, p in enumerate(pieces[:3])],
        "pre_tokenizer": space if metaspace else None,
        "decoder": {"type": "Sequence", "decoders": [space] * metaspace + decoders},
        "model": {
            "type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": byte_fallback
        },
    }  # fmt: skip
    return json.dumps(description)


@pytest.fixture(scope="module")
def unigram():
    return JsonTokenizer(unigram_json(True))


@pytest.fixture(scope="module")
def metaspace():
    return JsonTokenizer(unigram_json(True, metaspace=True))


LOSSLESS = ("bytes", "trained", "merging", "unigram")


@pytest.fixture(scope="module")
def every(trained, merging, unigram, metaspace):
    return {
        "bytes": ByteTokenizer(), "trained": trained, "merging": merging, "unigram": unigram,
        "metaspace": metaspace,
    }  # fmt: skip


def assert_ordinary(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert bool(len(ids)) == bool(text)
    layout = make_layout(tokenizer, (5, 3))
    assert layout.ordinary_text[ids].all()
    assert not set(ids.tolist()) & {*tokenizer.specials, tokenizer.bos, tokenizer.eos}
    return ids


@pytest.mark.parametrize("name", [*LOSSLESS, "metaspace"])
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_invariant_1_hostile_transcripts_have_ordinary_text_ids_only(every, name, text):
    ids = assert_ordinary(every[name], text)
    if name in LOSSLESS:
        assert every[name].decode(ids) == text


@settings(deadline=None, max_examples=150)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40), st.data())
@example("</s><s", None)
def test_invariant_1_any_text_has_ordinary_text_ids_only(every, text, data):
    if data is not None:  # markers in the middle of it
        text = text + data.draw(st.sampled_from(HOSTILE[:10])) + text[::-1]
    for name, tokenizer in every.items():
        ids = assert_ordinary(tokenizer, text)
        if name in LOSSLESS:
            # The library decodes a piece such as <0x41> to its byte, as SentencePiece does.
            assert tokenizer.decode(ids) == text or "<0x" in text


def test_without_our_changes_a_text_would_get_special_ids(merging, unigram):
    # Otherwise the tests above would not test special pieces in the vocabulary of the model.
    from tokenizers import Tokenizer

    for tokenizer in (merging, unigram):
        without = json.dumps({**json.loads(tokenizer.content), "added_tokens": []})
        ids = Tokenizer.from_str(without).encode("a<s>b", add_special_tokens=False).ids
        assert set(ids) & set(tokenizer.specials)


def test_long_sequences_of_special_pieces_are_encoded(unigram):
    ids = unigram.encode("hello<s></s>" * 5000)
    assert len(ids) > 5000 and not np.isin(ids, unigram.specials).any()


def test_the_error_of_a_text_without_ids_has_the_lost_character():
    tokenizer = JsonTokenizer(unigram_json(byte_fallback=False))
    assert tokenizer.decode(tokenizer.encode("hello </s>")) == "hello </s>"
    for text in ("☃", "hello ☃ you", "☃☃☃", "abc☃"):
        with pytest.raises(UserError, match=r"no ordinary ids for .*☃"):
            tokenizer.encode(text)


@pytest.mark.parametrize("name", ["bytes", "trained", "merging", "unigram"])
def test_lone_surrogates_are_rejected_in_one_line(every, name):
    with pytest.raises(UserError, match="not valid Unicode") as error:
        every[name].encode("ok \ud800 not ok")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*LOSSLESS, "metaspace"])
def test_decoding_ignores_special_ids(every, name):
    tokenizer = every[name]
    ids = tokenizer.encode("hello")
    spiced = np.concatenate([[tokenizer.bos], ids, [tokenizer.eos, tokenizer.vocabulary_size + 7]])
    assert tokenizer.decode(spiced) == tokenizer.decode(ids) == "hello"


@pytest.mark.parametrize("name", [*LOSSLESS, "metaspace"])
def test_a_saved_tokenizer_is_read_back(every, name, tmp_path):
    tokenizer = every[name]
    tokenizer.save(tmp_path / "kept")
    for spec in (tmp_path / "kept", str(tmp_path / "kept" / "tokenizer.json")):
        again = load_tokenizer(spec)
        assert type(again) is type(tokenizer) and again.fingerprint == tokenizer.fingerprint
        assert again.specials == tuple(tokenizer.specials)
        assert (again.bos, again.eos) == (tokenizer.bos, tokenizer.eos)
        np.testing.assert_array_equal(again.encode("a<s>b"), tokenizer.encode("a<s>b"))


def test_fingerprints_differ_between_tokenizers(every):
    assert len({tokenizer.fingerprint for tokenizer in every.values()}) == len(every)


def test_ids_of_the_byte_tokenizer_are_utf_8_bytes():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode("é!").tolist() == [0xC3, 0xA9, 0x21]
    assert tokenizer.decode([0x61, 0xC3]) == "a\ufffd"
    assert (tokenizer.vocabulary_size, tokenizer.bos, tokenizer.eos) == (258, 256, 257)


def test_a_trained_bpe_shortens_text_and_has_bos_and_eos_last(trained):
    assert len(trained.encode("hello there")) < len("hello there")
    size = trained.vocabulary_size
    assert size <= 320 and (trained.bos, trained.eos) == (size - 2, size - 1)
    with pytest.raises(UserError, match="vocabulary_size 257 is too small"):
        train_bpe(["a"], 257)


def test_ids_that_no_piece_has_are_special(merging):
    size = merging.vocabulary_size
    assert set(range(size - 4, size)) <= set(merging.specials)


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[1, 2]", "{}", '{"model": 3}', '"bytes"', "\u0000", '{"model": {"type": "BPE"}}',
    ],
)  # fmt: skip
def test_the_error_of_a_damaged_tokenizer_json_has_its_path(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer.json (is not a|has no BOS)") as error:
        load_tokenizer(tmp_path)
    assert str(file) in str(error.value)


def test_a_tokenizer_without_bos_or_eos_is_rejected(trained, tmp_path):
    description = json.loads(trained.content)
    for name, role in ((BOS, "BOS"), (EOS, "EOS")):
        kept = [token for token in description["added_tokens"] if token["content"] != name]
        with pytest.raises(UserError, match=f"has no {role} among its added tokens"):
            JsonTokenizer(json.dumps({**description, "added_tokens": kept}))
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "missing")
