"""A dry run tells what the job would do, and does nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpora import librispeech
from pipeline_toys import (
    RATE,
    hum,
    make_corpus,
    sound_bytes,
    tree,
    write_manifest,
    write_tar,
)

from soda_jax.cli import main
from soda_jax.data.format.manifest import Manifest, tokens_by_view
from soda_jax.errors import UserError
from tokenize_pipeline import archives
from tokenize_pipeline import dry_run as module
from tokenize_pipeline.dry_run import dry_run
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions

pytestmark = pytest.mark.usefixtures("toy_codec")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(module, "_TIMED_SECONDS", 0.05)


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


def stored(data: Path, split: str) -> int:
    return sum(path.stat().st_size for path in (data / split).iterdir())


def test_the_estimate_is_what_the_job_then_makes(tmp_path):
    asked = options(timed_corpus(tmp_path / "corpus"), tmp_path / "data")
    estimate = dry_run(asked)
    assert not (tmp_path / "data").exists()
    manifest = tokenize(asked).manifest
    for split, expected in estimate.splits.items():
        totals = manifest.totals(split)
        assert expected.shards == totals["shards"] > 0
        for exact in ("documents", "utterances", "text_tokens"):
            assert expected.totals[exact] == totals[exact]
        assert expected.work == pytest.approx(totals["frames"] / 10, rel=0.1)
        assert expected.totals["frames"] == pytest.approx(totals["frames"], rel=0.03)
        found = tokens_by_view("speech", 3, totals)
        assert expected.tokens == {name: pytest.approx(found[name], rel=0.03) for name in found}
        assert expected.stored == pytest.approx(stored(tmp_path / "data", split), rel=0.03)
    assert estimate.timed.found == pytest.approx(estimate.timed.expected, rel=0.1)
    assert estimate.timed.bad == {} and estimate.seconds > 0


def test_text_is_estimated_too_and_a_sample_says_so(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    words = ["one", "two", "three hundred", "a"]
    rows = [{"text": " ".join(rng.choice(words, int(rng.integers(5, 900))))} for _ in range(300)]
    asked = options(write_manifest(tmp_path / "t.jsonl", rows), tmp_path / "data", format="text")
    whole = dry_run(asked)
    monkeypatch.setattr(module, "SAMPLE_TEXTS", 40)
    sample = dry_run(asked)
    manifest = tokenize(asked).manifest
    for split, expected in whole.splits.items():
        tokens = manifest.totals(split)["text_tokens"]
        assert expected.totals["text_tokens"] == tokens
        assert sample.splits[split].totals["text_tokens"] == pytest.approx(tokens, rel=0.1)
        assert expected.tokens == {"text": tokens + 2 * manifest.totals(split)["documents"]}
        assert expected.stored == pytest.approx(stored(tmp_path / "data", split), rel=0.1)
    assert (whole.sampled, whole.texts) == (300, 300)
    assert 30 <= sample.sampled <= 40 and "of 300 texts" in sample.describe("x")
    assert "bytes of text per second" in whole.describe("x")


def test_nothing_is_opened_when_the_rate_is_given(tmp_path):
    # Half an hour of 16-bit sound at 16 kHz by its size, and no sound at all.
    (tmp_path / "c").mkdir()
    for number in range(2):
        (tmp_path / f"c/{number}.wav").write_bytes(bytes(32_000 * 900))
    rows = [{"audio": f"{number}.wav", "text": "t"} for number in range(2)]
    source = write_manifest(tmp_path / "c/m.jsonl", rows)
    estimate = dry_run(options(source, tmp_path / "data", validation_fraction=0.0), 60.0)
    assert estimate.splits["train"].work == pytest.approx(1800)
    assert estimate.seconds == pytest.approx(30)
    told = estimate.describe("data")
    assert "0.50 hours" in told and "as given" in told and "time: about 30 s" in told


def test_without_usable_audio_the_time_is_not_known_and_the_cause_is_told(tmp_path):
    rows = [{"audio": f"absent-{n}.wav", "text": "t"} for n in range(5)]
    source = write_manifest(tmp_path / "c/m.jsonl", rows)
    with open(source, "a") as file:
        file.write('{broken\n{"text": 3}\n')
    estimate = dry_run(options(source, tmp_path / "data"))
    assert estimate.seconds is None and estimate.rejected == {"malformed_row": 2}
    told = estimate.describe("data")
    assert "time: unknown, none of the first 5 utterances has a usable sound" in told
    assert "there is no such file" in told and "rejected rows: 2 malformed_row" in told


def test_sounds_of_another_length_than_expected_are_told(tmp_path):
    source = make_corpus(tmp_path / "corpus")  # 16-bit at 8 kHz: twice what its size says
    told = dry_run(options(source, tmp_path / "data")).describe("data")
    assert "their sound is" in told and "times as long as expected" in told


def test_an_append_counts_only_what_is_new_and_leaves_the_data_set_alone(tmp_path):
    source = make_corpus(tmp_path / "corpus", documents=4)
    data = tmp_path / "data"
    tokenize(options(source, data))
    before = tree(data)
    assert "nothing to tokenize" in dry_run(options(source, data, append=True)).describe("data")
    more = make_corpus(tmp_path / "corpus", documents=7)
    estimate = dry_run(options(more, data, append=True))
    assert sum(split.totals["documents"] for split in estimate.splits.values()) == 3
    assert "skipped, already in dataset: 4 documents" in estimate.describe("data")
    assert tree(data) == before
    assert Manifest.load(data).generation == 0


@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_a_long_utterance_is_measured_by_its_beginning(tmp_path, rate):
    (tmp_path / "c").mkdir()
    soundfile.write(tmp_path / "c/a.wav", hum(300.0, rate=rate), rate)
    rows: list[dict] = [{"audio": "a.wav", "text": "t", "start": 10.0, "end": 290.0}]
    known = dry_run(options(write_manifest(tmp_path / "c/m.jsonl", rows), tmp_path / "data"))
    assert known.timed.expected == known.timed.found == 30
    assert sum(split.work for split in known.splits.values()) == 280
    del rows[0]["start"], rows[0]["end"]
    guessed = dry_run(options(write_manifest(tmp_path / "c/m.jsonl", rows), tmp_path / "data"))
    assert guessed.timed.found == 30
    assert guessed.timed.expected == pytest.approx(30 * rate * 2 / 32_000, rel=1e-3)


def test_a_short_sound_in_a_large_file_is_not_taken_for_a_broken_one(tmp_path):
    (tmp_path / "c").mkdir()
    stereo = np.stack([hum(20.0, rate=48_000)] * 2, axis=1)  # two minutes by its size
    soundfile.write(tmp_path / "c/a.wav", stereo, 48_000)
    source = write_manifest(tmp_path / "c/m.jsonl", [{"audio": "a.wav", "text": "t"}])
    timed = dry_run(options(source, tmp_path / "data")).timed
    assert timed.bad == {} and timed.found == 20
    assert timed.expected == pytest.approx(120, rel=1e-3)


def test_a_corpus_in_a_compressed_archive_is_estimated_and_timed(tmp_path):
    chapters = {
        f"dev-clean/{speaker}/{speaker}1": [(f"WORDS {n}", hum(0.5 + 0.1 * n)) for n in range(4)]
        for speaker in (3, 5, 8)
    }
    source = librispeech.write_corpus(
        tmp_path / "in", chapters, archive="dev-clean.tar.gz", rate=RATE
    )
    asked = options(str(source), tmp_path / "data", format="librispeech", validation_fraction=0.0)
    estimate = dry_run(asked)
    assert estimate.rate > 0 and estimate.timed.bad == {}
    totals = tokenize(asked).manifest.totals("train")
    found = estimate.splits["train"]
    assert found.shards == totals["shards"] == 1  # one worker reads the archive
    for exact in ("documents", "utterances", "text_tokens"):
        assert found.totals[exact] == totals[exact]


def packed_corpus(folder: Path, count: int) -> str:
    """Sounds of a second in a compressed archive, in the order of the manifest."""
    sound = sound_bytes(hum(1.0))
    names = [f"{n}.wav" for n in range(count)]
    write_tar(folder / "a.tar.gz", {"unknown.wav": sound} | dict.fromkeys(names, sound))
    rows = [{"audio": "a.tar.gz", "member": name, "text": "t"} for name in names]
    return write_manifest(folder / "m.jsonl", rows)


def test_a_compressed_archive_is_opened_once_for_all_timed_shards(tmp_path, monkeypatch):
    opened, shards = [], []
    stream, work = archives.TarStream, module.tokenize_shard
    monkeypatch.setattr(archives, "TarStream", lambda path: opened.append(path) or stream(path))
    monkeypatch.setattr(
        module, "tokenize_shard", lambda *given: shards.append(given) or work(*given)
    )
    monkeypatch.setattr(module, "_TIMED_SECONDS", 60.0)
    source = packed_corpus(tmp_path / "c", 40)
    timed = dry_run(options(source, tmp_path / "data", validation_fraction=0.0)).timed
    assert (timed.tried, timed.bad) == (40, {})
    assert len(shards) > 1 and len(opened) == 1


def test_what_is_missing_in_an_archive_that_ends_soon_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TIMED_SECONDS", 60.0)
    source = packed_corpus(tmp_path / "c", 2)
    with open(source, "a") as file:
        file.write('{"audio": "a.tar.gz", "member": "no.wav", "text": "t"}\n')
        file.write('{"audio": "no.tar.gz", "member": "no.wav", "text": "t"}\n')
    timed = dry_run(options(source, tmp_path / "data")).timed
    assert timed.tried == 4 and timed.bad == {"missing": 2}


def test_the_command_prints_it_and_refuses_what_makes_no_sense(tmp_path, capsys):
    source = make_corpus(tmp_path / "corpus", documents=2)
    command = ["tokenize", f"--input={source}", f"--output={tmp_path / 'data'}", "--codec=toy"]
    assert main([*command, "--dry_run", "--rate=100"]) == 0
    told = capsys.readouterr().out
    assert "S+A+T" in told and "nothing is written to" in told
    assert not (tmp_path / "data").exists()
    for extra, message in (
        (["--rate=2"], "requires --dry_run"),
        (["--dry_run", "--rate=0"], "must be positive"),
        (["--dry_run", "--shrads=3"], "did you mean --shards?"),
    ):
        assert main([*command, *extra]) == 2
        assert message in capsys.readouterr().err
    empty = write_manifest(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match="contains no document"):
        dry_run(options(empty, tmp_path / "data"))
    assert json.loads(Path(source).read_text().splitlines()[0])  # the corpus is as it was
