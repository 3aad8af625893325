"""The synthetic corpus: vocabulary, determinism, resuming, and numbers as words."""

import argparse
import hashlib
import itertools
import json
import random

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from soda_jax.commands import synth as command
from soda_jax.errors import UserError
from soda_jax.evaluate.wer import number_normalizer
from tokenize_pipeline import synthetic

TASKS = ("demo", "numbers")


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_texts_use_exactly_the_words_of_the_vocabulary(task):
    generator = random.Random(3)
    texts = [synthetic.sample_text(task, generator) for _ in range(20_000)]
    assert {word for text in texts for word in text.split()} == synthetic.words(task)
    assert len(set(texts)) > 2_000  # so that some held-out texts are not in the training data


def test_the_demo_vocabulary_is_small_and_its_texts_short():
    assert 10 <= len(synthetic.words("demo")) <= 20
    generator = random.Random(0)
    lengths = [len(synthetic.sample_text("demo", generator).split()) for _ in range(1_000)]
    assert max(lengths) <= 4


@pytest.mark.parametrize("task", TASKS)
def test_documents_have_one_to_three_utterances_in_order(task):
    made = list(itertools.islice(synthetic.clips(task, seed=1), 300))
    groups = [list(group) for _, group in itertools.groupby(made, lambda clip: clip.document)]
    assert len({clip.document for clip in made}) == len(groups)
    assert {len(group) for group in groups[:-1]} == {1, 2, 3}
    for group in groups:
        assert [clip.order for clip in group] == list(range(len(group)))
    assert all(0.9 <= clip.speed <= 1.1 for clip in made)


def test_texts_and_document_ids_depend_on_seed_and_task():
    sets = [
        {(clip.document, clip.text) for clip in itertools.islice(synthetic.clips(task, seed), 50)}
        for task, seed in (("demo", 0), ("demo", 1), ("numbers", 0))
    ]
    assert not any(a & b for a, b in itertools.combinations(sets, 2))


def test_a_corpus_is_reproduced_exactly_and_an_interrupted_one_is_completed(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    synthetic.synthesize(one, "demo", 6, 5, seed=7)
    synthetic.synthesize(two, "demo", 3, 5, seed=7)
    kept = (two / "audio/000001.wav").stat().st_mtime_ns
    (two / "audio/000002.wav").unlink()
    manifest = synthetic.synthesize(two, "demo", 6, 5, seed=7)
    assert digest(one) == digest(two)
    assert (two / "audio/000001.wav").stat().st_mtime_ns == kept
    listed = rows(manifest)
    assert [row["audio"] for row in listed] == [f"audio/{i:06d}.wav" for i in range(6)]
    for row in listed:
        info = soundfile.info(two / row["audio"])
        assert (info.samplerate, info.channels) == (24_000, 1)
        assert 0.2 < info.duration < 2.5
        assert {"text", "document", "order", "speaker", "language"} <= set(row)
    texts = rows(two / "text.jsonl")
    assert len({row["id"] for row in texts}) == 5
    assert all(set(row["text"].split()) <= synthetic.words("demo") for row in texts)


def test_a_folder_with_another_corpus_is_rejected(tmp_path):
    synthetic.synthesize(tmp_path / "a", "demo", 1, 1)
    before = digest(tmp_path / "a")
    for task, seed in (("numbers", 0), ("demo", 1)):
        with pytest.raises(UserError, match="choose another --output"):
            synthetic.synthesize(tmp_path / "a", task, 1, 1, seed)
    (tmp_path / "b" / "audio").mkdir(parents=True)
    with pytest.raises(UserError, match="choose another --output"):
        synthetic.synthesize(tmp_path / "b", "demo", 1, 1)
    assert digest(tmp_path / "a") == before


def test_trim_removes_quiet_ends_except_a_margin():
    quiet, loud = np.full(12_000, 1e-4, np.float32), np.full(2_400, 0.5, np.float32)
    trimmed = synthetic.trim(np.concatenate([quiet, loud, quiet, loud, quiet]))
    assert len(trimmed) == 12_000 + 2 * 2_400 + 2 * 720 - 1
    np.testing.assert_array_equal(trimmed[720 : 720 + 2_400], loud)
    assert len(synthetic.trim(np.zeros(5, np.float32))) == 5


def test_the_command_writes_a_corpus_and_rejects_a_count_below_one(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    output = f"--output={tmp_path}/corpus"
    assert command.run(parser.parse_args([output, "--clips=2", "--texts=3"])) == 0
    assert len(rows(tmp_path / "corpus/manifest.jsonl")) == 2
    assert "2 clips" in capsys.readouterr().out
    with pytest.raises(UserError, match="--clips=0"):
        command.run(parser.parse_args([output, "--clips=0"]))


@given(st.integers(0, 999))
def test_a_number_in_words_compares_equal_to_its_digits(value):
    spell = number_normalizer([])
    assert spell(synthetic.number_in_words(value)) == spell(str(value)) == " ".join(str(value))
