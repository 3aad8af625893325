"""`soda retext` and the commands: another tokenizer, the same codes."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pipeline_toys import documents_of, make_corpus, quarantine_of, tree, write_manifest

from soda_jax.commands import retext as retext_command
from soda_jax.commands import tokenize as tokenize_command
from soda_jax.commands import tokenizer as tokenizer_command
from soda_jax.data.format.manifest import Manifest
from soda_jax.errors import UserError
from soda_jax.tokens.text import load_tokenizer, train_bpe
from tokenize_pipeline import worker
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions
from tokenize_pipeline.retext import retext
from tokenize_pipeline.verify import verify

pytestmark = pytest.mark.usefixtures("toy_codec")


@pytest.fixture
def dataset(tmp_path) -> Path:
    source = make_corpus(tmp_path / "corpus")
    given = {"codec": "toy", "validation_fraction": 0.3, "shards": 2}
    tokenize(TokenizeOptions(source, str(tmp_path / "data"), **given))
    return tmp_path / "data"


@pytest.fixture
def bpe(tmp_path) -> Path:
    train_bpe(["hum 1 2 3 hum hum"] * 50, 270).save(tmp_path / "bpe")
    return tmp_path / "bpe"


def test_retext_changes_the_text_ids_and_not_one_code(dataset, bpe, tmp_path):
    old, new = Manifest.load(dataset), retext(dataset, bpe, tmp_path / "new")
    encoder = load_tokenizer(bpe)
    for split in ("train", "validation"):
        before, after = documents_of(dataset, split), documents_of(tmp_path / "new", split)
        assert list(before) == list(after)
        for name in before:
            for one, two in zip(before[name], after[name], strict=True):
                np.testing.assert_array_equal(one.codes, two.codes)
                np.testing.assert_array_equal(two.text_ids, encoder.encode(one.text))
                assert one.text == two.text
    assert new.totals("train")["frames"] == old.totals("train")["frames"]
    assert new.totals("train")["text_tokens"] < old.totals("train")["text_tokens"]
    assert new.tokenizer_fingerprint == encoder.fingerprint
    assert new.layout.text_size == encoder.vocabulary_size
    assert (new.codec, new.layout.codebook_sizes) == (old.codec, old.layout.codebook_sizes)
    assert Manifest.load(tmp_path / "new").digest == new.digest


def test_retext_to_the_same_tokenizer_repeats_the_shards_byte_for_byte(dataset, tmp_path):
    retext(dataset, "bytes", tmp_path / "new")
    again = tree(tmp_path / "new")
    assert {name: again[name] for name in again if name[:5] in ("train", "valid")} == {
        name: content for name, content in tree(dataset).items() if name[:5] in ("train", "valid")
    }


def test_retext_splits_long_documents_again_and_keeps_every_token(tmp_path, bpe):
    long = " ".join(f"hum {n}" for n in range(4000))
    source = write_manifest(tmp_path / "t.jsonl", [{"text": long, "id": "long"}])
    data = tmp_path / "data"
    tokenize(
        TokenizeOptions(source, str(data), format="text", codec="toy", validation_fraction=0.0)
    )
    new = retext(data, bpe, tmp_path / "new")
    assert new.totals("train")["records"] < Manifest.load(data).totals("train")["records"]
    assert documents_of(tmp_path / "new")["long"][0].text == long


WORDS = ["hum", "0", "1", "2"]  # of the corpus: documents d3 to d5 have a word that is not here


@pytest.fixture
def words(tmp_path) -> Path:
    """Writes a tokenizer of whole words; its unknown piece is not one of its added tokens."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    names = ("<s>", "</s>")
    added = [{"id": 9 + n, "content": c, "special": True, **flags} for n, c in enumerate(names)]
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *WORDS])}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    space = {"type": "Whitespace"}
    content = json.dumps({"added_tokens": added, "pre_tokenizer": space, "model": model})
    (tmp_path / "words").mkdir()
    (tmp_path / "words/tokenizer.json").write_text(content)
    return tmp_path / "words"


def test_invariant_8_retext_quarantines_what_the_tokenizer_cannot_represent(
    tmp_path, words, capsys
):
    source = make_corpus(tmp_path / "corpus")
    clips = tmp_path / "corpus" / "clips"
    shutil.copy(clips / "0-0.wav", clips / "copy.wav")
    row = {"audio": "clips/copy.wav", "text": "hum \N{SNOWMAN} 9", "document": "d0", "order": 7}
    bad = {"audio": "absent.wav", "text": "hum", "document": "d0", "order": 8}
    with open(source, "a") as file:
        file.write(json.dumps(row) + "\n" + json.dumps(bad) + "\n")
    given = {"codec": "toy", "validation_fraction": 0.3, "shards": 2, "max_bad_fraction": 0.9}
    tokenize(TokenizeOptions(source, str(tmp_path / "data"), **given))
    direct = {**given, "tokenizer": str(words)}
    tokenize(TokenizeOptions(source, str(tmp_path / "direct"), **direct))

    options = [f"{tmp_path}/data", f"--tokenizer={words}", f"--output={tmp_path}/new"]
    assert command(retext_command, *options) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "the tokenizer cannot represent 10 of 19 utterances" in line
    assert "document d" in line and "no ordinary ids for" in line
    assert not (tmp_path / "new/manifest.json").exists()
    assert len(quarantine_of(tmp_path / "new")) == 11

    assert command(retext_command, *options, "--max_bad_fraction=0.6") == 0
    assert "quarantine.jsonl: 10 utterances that" in capsys.readouterr().out
    new = Manifest.load(tmp_path / "new")
    assert new.quarantined == {"missing": 1, "not_in_tokenizer": 10}
    rows = [r for r in quarantine_of(tmp_path / "new") if r["reason"] == "not_in_tokenizer"]
    assert rows[0]["where"].split("/")[0] in ("train", "validation")
    named = {(r["document"], r["utterance"]): r["message"] for r in rows}
    assert named["d0", 3].endswith("no ordinary ids for '\N{SNOWMAN}'")
    assert {document for document, _ in named} == {"d0", "d3", "d4", "d5"}
    assert not list(verify(tmp_path / "new"))
    # The shards equal those of a corpus that was tokenized with this tokenizer.
    assert Manifest.load(tmp_path / "direct").quarantined == new.quarantined
    shards = [
        {name: content for name, content in tree(folder).items() if name[:5] in ("train", "valid")}
        for folder in (tmp_path / "new", tmp_path / "direct")
    ]
    assert shards[0] == shards[1]


def test_retext_fails_if_the_tokenizer_represents_no_text(dataset, words, tmp_path):
    content = (words / "tokenizer.json").read_text().replace('"hum"', '"ham"')
    (words / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"18 of 18 utterances .*; choose another tokenizer$"):
        retext(dataset, words, tmp_path / "new", max_bad_fraction=1.0)
    with pytest.raises(UserError, match="max_bad_fraction=-1 must be between 0 and 1"):
        retext(dataset, words, tmp_path / "new", max_bad_fraction=-1)


def test_documents_that_retext_quarantined_can_be_appended_with_corrected_texts(
    dataset, words, tmp_path
):
    retext(dataset, words, tmp_path / "new", max_bad_fraction=0.5)
    rows = [{"audio": "clips/3-0.wav", "text": "hum 1 1", "document": "d3"}]
    more = write_manifest(tmp_path / "corpus/more.jsonl", rows)
    summary = tokenize(TokenizeOptions(more, str(tmp_path / "new"), codec="toy", append=True))
    assert summary.state == "finished" and summary.manifest.quarantined == {"not_in_tokenizer": 9}
    found = {**documents_of(tmp_path / "new"), **documents_of(tmp_path / "new", "validation")}
    assert sorted(found) == ["d0", "d1", "d2", "d3"]


def test_a_stopped_retext_starts_again_and_writes_the_same_bytes(
    dataset, bpe, tmp_path, monkeypatch
):
    retext(dataset, bpe, tmp_path / "whole")
    real, calls = worker.split_document, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(worker, "split_document", failing)
        with pytest.raises(KeyboardInterrupt):
            retext(dataset, bpe, tmp_path / "new")
    assert not (tmp_path / "new/manifest.json").exists()
    retext(dataset, bpe, tmp_path / "new")
    (tmp_path / "new/manifest.json").unlink()  # as killed before its last rename
    retext(dataset, bpe, tmp_path / "new")
    assert tree(tmp_path / "new") == tree(tmp_path / "whole")


def test_a_retexted_data_set_can_be_appended_to(dataset, bpe, tmp_path):
    retext(dataset, bpe, tmp_path / "new")
    more = make_corpus(tmp_path / "corpus", documents=8)
    given = {"codec": "toy", "validation_fraction": 0.3, "shards": 2, "append": True}
    summary = tokenize(TokenizeOptions(more, str(tmp_path / "new"), **given))
    assert summary.counts["already_in_dataset"] == 6
    found = {**documents_of(tmp_path / "new"), **documents_of(tmp_path / "new", "validation")}
    assert sorted(found) == [f"d{n}" for n in range(8)]


def test_retext_refuses_folders_with_other_files(dataset, tmp_path):
    with pytest.raises(UserError, match="is a finished data set"):
        retext(dataset, "bytes", dataset)
    with pytest.raises(UserError, match="contains other files"):
        retext(dataset, "bytes", tmp_path)
    with pytest.raises(UserError, match="cannot read the manifest"):
        retext(tmp_path / "absent", "bytes", tmp_path / "new")


def command(module, *words: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    args, args.unknown = parser.parse_known_args(words)[0], parser.parse_known_args(words)[1]
    return module.run(args)


def test_the_commands_write_a_tokenizer_a_data_set_and_its_retext(tmp_path, capsys):
    source = make_corpus(tmp_path / "corpus", documents=3)
    training = [f"--input={source}", "--format=manifest", "--vocabulary_size=260"]
    assert command(tokenizer_command, "train", *training, f"--output={tmp_path}/bpe") == 0
    data = ["--codec=toy", "--validation_fraction=0", f"--output={tmp_path}/data"]
    assert command(tokenize_command, f"--input={source}", *data) == 0
    assert "3 documents, 9 utterances" in capsys.readouterr().out
    given = [f"{tmp_path}/data", f"--tokenizer={tmp_path}/bpe", f"--output={tmp_path}/new"]
    assert command(retext_command, *given) == 0
    assert "text tokens" in capsys.readouterr().out


def test_too_many_bad_inputs_exit_with_status_1_and_one_line(tmp_path, capsys):
    source = write_manifest(tmp_path / "c/m.jsonl", [{"audio": "absent.wav", "text": "t"}])
    words = [f"--input={source}", "--codec=toy", f"--output={tmp_path}/data"]
    assert command(tokenize_command, *words) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "soda tokenize" in line]
    assert "1 missing" in line
    assert json.loads((tmp_path / "data/quarantine.jsonl").read_text())["file"] == "absent.wav"


def test_the_commands_import_nothing_heavy_before_they_run():
    heavy = ("apache_beam", "jax", "numpy", "tokenizers", "soundfile")
    names = "tokenize, retext, tokenizer"
    check = f"import sys; from soda_jax.commands import {names}; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
