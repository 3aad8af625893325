"""Tokenizer and layout of a Hugging Face folder, written by soda or not."""

import json

import numpy as np
import pytest
from tokenizer_toys import TEXTS, added, every

from soda_jax.checked_json import write_checked_json
from soda_jax.convert.front_end import read_front_end
from soda_jax.convert.tokenizer_files import tokenizer_files
from soda_jax.errors import UserError
from soda_jax.tokens.text import make_layout, train_bpe

KINDS = ("bytes", "trained", "llama_like", "qwen_like")
SIZES = (40, 7, 19)
SAMPLES = [*TEXTS, "❤️ 好，你好 \ufffd <|audio_start|>\ue000", "12345  6"]


@pytest.fixture(scope="module")
def tokenizers():
    return every()


def foreign(folder, tokenizer, sizes=SIZES, edit=lambda description: None):
    """Writes a folder with only a tokenizer.json; returns its layout."""
    layout = make_layout(tokenizer, sizes)
    description = json.loads(tokenizer_files(tokenizer, layout)["tokenizer.json"])
    edit(description)
    (folder / "tokenizer.json").write_text(json.dumps(description))
    return layout


def own(folder, tokenizer, sizes=SIZES):
    """Writes the files of an export of soda; returns its layout."""
    layout = foreign(folder, tokenizer, sizes)
    tokenizer.save(folder / "soda" / "tokenizer")
    write_checked_json(folder / "soda.json", {"layout": layout.to_json()})
    return layout


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_folder_yields_its_text_tokenizer_and_layout(tmp_path, tokenizers, kind):
    wanted = foreign(tmp_path, tokenizers[kind])
    found, layout = read_front_end(tmp_path, SIZES)
    assert layout == wanted
    for text in SAMPLES:
        ids = found.encode(text)
        assert layout.ordinary_text[ids].all()
        np.testing.assert_array_equal(ids, tokenizers[kind].encode(text))


def test_the_codebook_sizes_of_soda_are_the_default(tmp_path, tokenizers):
    wanted = foreign(tmp_path, tokenizers["bytes"], (2048,) * 8)
    assert read_front_end(tmp_path)[1] == wanted
    assert read_front_end(tmp_path, (4096,) * 4)[1].codebook_sizes == (4096,) * 4


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_of_soda_returns_the_same_tokenizer(tmp_path, tokenizers, kind):
    wanted = own(tmp_path, tokenizers[kind])
    for sizes in (None, SIZES):
        found, layout = read_front_end(tmp_path, sizes)
        assert found.fingerprint == tokenizers[kind].fingerprint and layout == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_an_equal_tokenizer_of_the_data_is_returned(tmp_path, tokenizers, kind):
    foreign(tmp_path, tokenizers[kind])
    tokenizers[kind].save(tmp_path / "data")
    spec = "bytes" if kind == "bytes" else tmp_path / "data"
    found, _ = read_front_end(tmp_path, SIZES, spec)
    assert found.fingerprint == tokenizers[kind].fingerprint


def test_both_forms_of_merges_are_accepted(tmp_path, tokenizers):
    def joined(description):
        merges = description["model"]["merges"]
        assert merges and all(len(pair) == 2 for pair in merges)
        description["model"]["merges"] = [" ".join(pair) for pair in merges]

    foreign(tmp_path, tokenizers["trained"], edit=joined)
    tokenizers["trained"].save(tmp_path / "data")
    assert read_front_end(tmp_path, SIZES, tmp_path / "data")[0].bos == tokenizers["trained"].bos


def swap_merges(model):
    model["merges"][:2] = model["merges"][1::-1]


def swap_pieces(model):
    a, b = "Ġ", "h"
    model["vocab"][a], model["vocab"][b] = model["vocab"][b], model["vocab"][a]


def special_piece(description):
    description["added_tokens"].append(added("h", description["model"]["vocab"]["h"]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: swap_merges(d["model"]), r"has merges \(.*\), .* has \(.*\) instead"),
        (lambda d: swap_pieces(d["model"]), r"has vocab \(.*\), .* has \(.*\) instead"),
        (
            lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
            r"encodes 'a' as \[.*tokenizer.json as \[",
        ),
        (special_piece, r"data\.json has special ids \d+, .* has \d+ instead"),
        (lambda d: d["added_tokens"].append(added("<x>", 400)), "has vocabulary_size 401"),
        (lambda d: d["added_tokens"][0].update(content="<|x|>"), "has no BOS"),
    ],
)
def test_another_tokenizer_than_that_of_the_model_is_refused(tmp_path, tokenizers, change, match):
    foreign(tmp_path, tokenizers["trained"])
    description = json.loads(tokenizers["trained"].content)
    change(description)
    (tmp_path / "data.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=match) as caught:
        read_front_end(tmp_path, SIZES, tmp_path / "data.json")
    assert "\n" not in str(caught.value) and str(tmp_path / "data.json") in str(caught.value)


def test_a_tokenizer_trained_on_other_text_is_refused(tmp_path, tokenizers):
    foreign(tmp_path, tokenizers["trained"])
    other = train_bpe([text[::-1] for text in TEXTS] * 20, tokenizers["trained"].vocabulary_size)
    other.save(tmp_path / "data")
    with pytest.raises(UserError, match="soda retext"):
        read_front_end(tmp_path, SIZES, tmp_path / "data")


def tokens_at(description, first, last):
    """The added tokens with the ids first … last above the text of the byte tokenizer."""
    wanted = range(258 + first, 258 + last + 1)
    return [token for token in description["added_tokens"] if token["id"] in wanted]


def drop(number):
    def edit(description):
        gone = tokens_at(description, number, number)[0]
        description["added_tokens"].remove(gone)

    return edit


def swap(first, second):
    def edit(description):
        (a,), (b,) = tokens_at(description, first, first), tokens_at(description, second, second)
        a["content"], b["content"] = b["content"], a["content"]

    return edit


def shift(number, by):
    def edit(description):
        for token in tokens_at(description, number, 10**6):
            token["id"] += by

    return edit


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (drop(2), r"has no <\|audio_start\|> among its added tokens.*--extend-vocabulary"),
        (swap(1, 2), r"<\|text_end\|> has id 260 in the file .*, expected 259"),
        (shift(3, 1), r"<\|audio_end\|> has id 262 in the file .*, expected 261"),
        (lambda d: d["added_tokens"].__delitem__(slice(6, None)), r"U[+]E000 has id None in the file .*, expected 262"),
        (drop(14), r"U[+]E00A has id None in the file .*, expected 272"),
        (drop(69), "has 65 audio characters, --codebook_sizes=40,7,19 sum to 66"),
        (swap(10, 11), r"U[+]E006 has id 269 in the file .*, expected 268"),
        (shift(0, 7), "has id 265 in the file and 258 when loaded"),
        (lambda d: d["model"]["vocab"].update({"ab": 300}), "when loaded|last text id is 300"),
        (lambda d: d.update(model=None), "is not a tokenizer.json"),
        (lambda d: d.update(added_tokens="no"), "is not a tokenizer.json"),
    ],
)  # fmt: skip
def test_a_folder_of_another_layout_is_refused_by_file_and_id(tmp_path, tokenizers, edit, match):
    foreign(tmp_path, tokenizers["bytes"], edit=edit)
    with pytest.raises(UserError, match=match) as caught:
        read_front_end(tmp_path, SIZES)
    assert "\n" not in str(caught.value) and str(tmp_path / "tokenizer.json") in str(caught.value)


def test_an_unknown_number_of_audio_ids_needs_the_sizes(tmp_path, tokenizers):
    foreign(tmp_path, tokenizers["bytes"])
    with pytest.raises(UserError, match=r"66 audio characters: give the sizes .* --codebook_sizes"):
        read_front_end(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        read_front_end(tmp_path)


def test_an_inconsistent_export_of_soda_is_refused(tmp_path, tokenizers):
    own(tmp_path, tokenizers["bytes"])
    with pytest.raises(UserError, match="40,7,19, not 40,26: omit --codebook_sizes"):
        read_front_end(tmp_path, (40, 26))
    good = (tmp_path / "tokenizer.json").read_text()
    description = json.loads(good)
    swap(10, 11)(description)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"the audio character U[+]E006 as .*, expected 268"):
        read_front_end(tmp_path)
    (tmp_path / "tokenizer.json").write_text(good)
    tokenizers["trained"].save(tmp_path / "soda" / "tokenizer")
    with pytest.raises(UserError, match=r"soda\.json disagrees with the tokenizer in"):
        read_front_end(tmp_path)
    write_checked_json(tmp_path / "soda.json", {})
    with pytest.raises(UserError, match=r"soda\.json has no vocabulary layout"):
        read_front_end(tmp_path)
