"""`--dry_run`: estimates match the finished job, and nothing is written."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpora import librispeech
from pipeline_toys import (
    RATE,
    hum,
    make_corpus,
    tree,
    write_manifest,
)

from soda_jax.cli import main
from soda_jax.data.format.manifest import Manifest
from soda_jax.errors import UserError
from tokenize_pipeline import estimate as module
from tokenize_pipeline.estimate import estimate
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions

pytestmark = pytest.mark.usefixtures("toy_codec")


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    monkeypatch.setattr(module, "TIMED_SECONDS", 0.05)


def timed_corpus(folder: Path, documents: int = 40) -> str:
    """Documents of three utterances each, cut from one file by their times."""
    folder.mkdir()
    soundfile.write(folder / "long.flac", hum(30.0), RATE)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(documents * 3):
        start = round(float(rng.uniform(0, 25)), 2)
        end = round(start + float(rng.uniform(0.5, 4)), 2)
        text = "la " * int(rng.integers(1, 60))
        rows.append({"audio": "long.flac", "text": text, "document": f"d{number // 3}"})
        rows[-1] |= {"start": start, "end": end}
    return write_manifest(folder / "manifest.jsonl", rows)


def options(source: str, output: Path, **changed) -> TokenizeOptions:
    given = {"codec": "toy", "validation_fraction": 0.2, "shards": 3, **changed}
    return TokenizeOptions(source, str(output), **given)


def compare(asked: TokenizeOptions, tolerance: float) -> None:
    """Compares an estimate with what the job then writes."""
    made = estimate(asked)
    assert not Path(asked.output).exists()
    manifest = tokenize(asked).manifest
    for split in ("train", "validation"):
        expected, found = made.totals(split), manifest.totals(split)
        for exact in ("shards", "documents", "utterances"):
            assert expected[exact] == found[exact] > 0
        for near in ("text_tokens", "frames"):
            assert expected[near] == pytest.approx(found[near], rel=tolerance)
        written = sum(path.stat().st_size for path in (Path(asked.output) / split).iterdir())
        assert expected["bytes"] == pytest.approx(written, rel=0.1)
    assert made.seconds > 0 and not made.result.quarantine


def test_the_estimate_of_speech_matches_the_job(tmp_path):
    compare(options(timed_corpus(tmp_path / "corpus"), tmp_path / "data"), 0.2)


def test_lengths_that_differ_from_the_expected_ones_are_corrected(tmp_path):
    source = make_corpus(
        tmp_path / "corpus", documents=12
    )  # at 8 kHz: twice as long as by its size
    asked = options(source, tmp_path / "data", validation_fraction=0.0)
    made = estimate(asked)
    frames = tokenize(asked).manifest.totals("train")["frames"]
    assert made.totals("train")["frames"] == pytest.approx(frames, rel=0.01)
    assert sum(shard.weight for shard in made.plan.shards) < frames / 10 / 1.8


def test_the_estimate_of_text_matches_the_job(tmp_path):
    rng = np.random.default_rng(0)
    words = ["one", "two", "three hundred", "a"]
    rows = [{"text": " ".join(rng.choice(words, int(rng.integers(5, 900))))} for _ in range(300)]
    asked = options(write_manifest(tmp_path / "t.jsonl", rows), tmp_path / "data", format="text")
    compare(asked, 0.1)
    (tmp_path / "data").rename(tmp_path / "made")
    assert "bytes of text per second" in estimate(asked).describe("x")


def test_a_short_shard_is_timed_again_with_more_utterances(tmp_path, monkeypatch):
    timed = []
    work = module.tokenize_shard
    monkeypatch.setattr(
        module,
        "tokenize_shard",
        lambda job, shard: timed.append(shard.utterances) or work(job, shard),
    )
    monkeypatch.setattr(module, "TIMED_SECONDS", 1e9)
    source = timed_corpus(tmp_path / "corpus", documents=100)
    assert estimate(options(source, tmp_path / "data")).timed.utterances == 300
    assert timed[0] == timed[1] < timed[2] <= timed[-1] == 300
    monkeypatch.setattr(module, "MOST_UTTERANCES", 7)
    assert estimate(options(source, tmp_path / "data")).timed.utterances == 7


def test_without_usable_audio_the_time_is_unknown_and_the_cause_is_printed(tmp_path):
    rows = [{"audio": f"absent-{n}.wav", "text": "t"} for n in range(5)]
    source = write_manifest(tmp_path / "c/m.jsonl", rows)
    with open(source, "a") as file:
        file.write('{broken\n{"text": 3}\n')
    made = estimate(options(source, tmp_path / "data"))
    assert made.seconds is None and made.rejected == {"malformed_row": 2}
    printed = made.describe("data")
    assert "time: unknown, none of the first 5 utterances is usable: " in printed
    assert "there is no such file" in printed and "rejected rows: 2 malformed_row" in printed


def test_unusable_utterances_of_the_timed_shard_are_counted(tmp_path):
    source = make_corpus(tmp_path / "corpus")
    with open(source, "a") as file:
        file.write('{"audio": "absent.wav", "text": "t"}\n')
    assert "unusable among the 19 tried: 1 missing" in estimate(
        options(source, tmp_path / "data")
    ).describe("data")


def test_an_append_counts_only_new_documents_and_does_not_change_the_data_set(tmp_path):
    source = make_corpus(tmp_path / "corpus", documents=4)
    data = tmp_path / "data"
    tokenize(options(source, data))
    before = tree(data)
    assert "nothing to tokenize" in estimate(options(source, data, append=True)).describe("data")
    more = make_corpus(tmp_path / "corpus", documents=7)
    made = estimate(options(more, data, append=True))
    assert sum(made.totals(split)["documents"] for split in ("train", "validation")) == 3
    assert "skipped, already in dataset: 4 documents" in made.describe("data")
    assert tree(data) == before
    assert Manifest.load(data).generation == 0


def test_a_long_utterance_is_measured_by_its_beginning(tmp_path):
    (tmp_path / "c").mkdir()
    soundfile.write(tmp_path / "c/a.wav", hum(300.0), RATE)
    rows = [{"audio": "a.wav", "text": "t" * 280, "start": 10.0, "end": 290.0}]
    asked = options(write_manifest(tmp_path / "c/m.jsonl", rows), tmp_path / "data")
    made = estimate(asked)
    assert made.timed.weight == 30
    assert (made.result.info.frames, made.result.info.text_tokens) == (300, 30)
    (totals,) = [made.totals(s) for s in ("train", "validation") if made.totals(s)["documents"]]
    assert (totals["frames"], totals["text_tokens"]) == (2800, 280)


def test_a_corpus_in_a_compressed_archive_is_estimated_and_timed(tmp_path):
    chapters = {
        f"dev-clean/{speaker}/{speaker}1": [(f"WORDS {n}", hum(0.5 + 0.1 * n)) for n in range(4)]
        for speaker in (3, 5, 8)
    }
    source = librispeech.write_corpus(
        tmp_path / "in", chapters, archive="dev-clean.tar.gz", rate=RATE
    )
    asked = options(str(source), tmp_path / "data", format="librispeech", validation_fraction=0.0)
    made = estimate(asked)
    assert made.seconds > 0 and made.result.quarantine == []
    totals = tokenize(asked).manifest.totals("train")
    found = made.totals("train")
    assert found["shards"] == totals["shards"] == 1  # one worker reads the archive
    for exact in ("documents", "utterances", "text_tokens"):
        assert found[exact] == totals[exact]


def test_the_command_prints_the_estimate_and_rejects_wrong_options(tmp_path, capsys):
    source = make_corpus(tmp_path / "corpus", documents=2)
    files = tree(tmp_path / "corpus")
    command = ["tokenize", f"--input={source}", f"--output={tmp_path / 'data'}", "--codec=toy"]
    assert main([*command, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "S+A+T" in printed and "nothing is written to" in printed
    assert not (tmp_path / "data").exists()
    assert main([*command, "--dry_run", "--shrads=3"]) == 2
    assert "did you mean --shards?" in capsys.readouterr().err
    empty = write_manifest(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match="contains no document"):
        estimate(options(empty, tmp_path / "data"))
    assert tree(tmp_path / "corpus") == files
