"""Texts that the tokenizer of a job does not represent are quarantined, counted and reported."""

import argparse
import json
import unicodedata
from pathlib import Path

import pytest
import soundfile
from pipeline_toys import RATE, documents_of, hum, quarantine_of, write_manifest

from soda_jax.commands import tokenize as tokenize_command
from soda_jax.data.format.manifest import Manifest
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.merge import TooManyBadInputsError
from tokenize_pipeline.options import TokenizeOptions

pytestmark = pytest.mark.usefixtures("toy_codec")

CAFE = unicodedata.normalize("NFC", "café one 7 two")
LETTERS = ["<unk>", *"acefnotw "]
LOWER = {"type": "Lowercase"}


def save_tokenizer(folder: Path, normalizer: dict | None = None, **settings) -> str:
    """Saves a BPE of single letters; BOS and EOS are added tokens, the unknown piece is not."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    names = enumerate(("<s>", "</s>"), len(LETTERS))
    description = {
        "added_tokens": [{"id": n, "content": c, "special": True, **flags} for n, c in names],
        "normalizer": normalizer,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "vocab": {letter: number for number, letter in enumerate(LETTERS)},
            "merges": [],
            **settings,
        },
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(description))
    return str(folder)


def make_corpus(folder: Path, texts: list[str]) -> str:
    folder.mkdir()
    soundfile.write(folder / "a.wav", hum(0.5), RATE)
    rows = [{"audio": "a.wav", "text": t, "document": f"{n}"} for n, t in enumerate(texts)]
    return write_manifest(folder / "m.jsonl", rows)


def options(source: str, data: Path, **given) -> TokenizeOptions:
    return TokenizeOptions(source, str(data), codec="toy", validation_fraction=0.0, **given)


@pytest.mark.parametrize("settings", [{}, {"unk_token": "<unk>"}, {"unk_token": "<absent>"}])
def test_invariant_8_a_text_with_a_lost_character_is_quarantined_and_counted(tmp_path, settings):
    source = make_corpus(tmp_path / "c", [CAFE, "cafe one two", "one two", "no"])
    tokenizer = save_tokenizer(tmp_path / "t", **settings)
    with pytest.raises(TooManyBadInputsError, match="1 not_in_tokenizer"):
        tokenize(options(source, tmp_path / "data", tokenizer=tokenizer))
    given = {"tokenizer": tokenizer, "max_bad_fraction": 0.25}
    summary = tokenize(options(source, tmp_path / "data", **given))
    assert summary.bad == {"not_in_tokenizer": 1}
    assert Manifest.load(tmp_path / "data").quarantined == {"not_in_tokenizer": 1}
    (row,) = quarantine_of(tmp_path / "data")
    assert (row["document"], row["reason"]) == ("0", "not_in_tokenizer")
    assert row["message"] == "the tokenizer has no ordinary ids for 'é'"
    assert list(documents_of(tmp_path / "data")) == ["1", "2", "3"]


def test_lines_of_a_text_corpus_are_checked_like_transcripts(tmp_path):
    (tmp_path / "t.txt").write_text(f"{CAFE}\none\ntwo\n")
    tokenizer = save_tokenizer(tmp_path / "t")
    given = {"format": "text", "tokenizer": tokenizer, "max_bad_fraction": 0.5}
    summary = tokenize(options(str(tmp_path / "t.txt"), tmp_path / "data", **given))
    assert summary.bad == {"not_in_tokenizer": 1}


def test_a_normalizer_is_accepted_and_its_spelling_is_shown(tmp_path, capsys):
    source = make_corpus(tmp_path / "c", ["One Two", "one two", "NO"])
    tokenizer = save_tokenizer(tmp_path / "t", LOWER)
    parser = argparse.ArgumentParser()
    tokenize_command.add_arguments(parser)
    words = [f"--input={source}", f"--output={tmp_path}/data", "--codec=toy"]
    words += [f"--tokenizer={tokenizer}", "--validation_fraction=0"]
    assert tokenize_command.run(parser.parse_args(words)) == 0
    line = (
        "the tokenizer decodes 2 of the first 3 texts with another spelling: 'One Two' as 'one two'"
    )
    assert line in capsys.readouterr().out
    texts = [utterances[0].text for utterances in documents_of(tmp_path / "data").values()]
    assert texts == ["One Two", "one two", "NO"]  # stored as they were


def test_canonically_equal_texts_are_not_reported_as_another_spelling(tmp_path, capsys):
    decomposed = unicodedata.normalize("NFD", "été")
    source = make_corpus(tmp_path / "c", [decomposed])
    from soda_jax.tokens.text import train_bpe

    trained = json.loads(train_bpe(["hello"], 260).content)
    (tmp_path / "nfc.json").write_text(json.dumps({**trained, "normalizer": {"type": "NFC"}}))
    parser = argparse.ArgumentParser()
    tokenize_command.add_arguments(parser)
    words = [f"--input={source}", f"--output={tmp_path}/data", "--codec=toy"]
    words += [f"--tokenizer={tmp_path}/nfc.json", "--validation_fraction=0"]
    assert tokenize_command.run(parser.parse_args(words)) == 0
    assert "another spelling" not in capsys.readouterr().out
    ((utterance,),) = documents_of(tmp_path / "data").values()
    assert utterance.text == decomposed and len(utterance.text_ids) == 5  # é is two bytes
