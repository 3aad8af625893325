"""`soda tokenize` with Mimi: codes of sound files, in one process and in two."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from mimi_sounds import FIXTURE, HOP, sounds
from pipeline_toys import documents_of, quarantine_of, tree, write_manifest
from toys import xla_flags

from soda_jax.codecs import load_codec
from soda_jax.codecs.audio import encode_long, read_audio
from soda_jax.codecs.mimi.codec import MimiCodec
from soda_jax.data.format.manifest import Manifest
from tokenize_pipeline import encoding
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions

SPEC = f"mimi:{FIXTURE}"


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Writes six documents of one utterance, at two sample rates; the last file is not a sound."""
    voice = sounds()["buzz"]
    (tmp_path / "c").mkdir()
    rows = []
    for number, rate in enumerate([24_000, 16_000, 24_000, 24_000, 24_000]):
        soundfile.write(tmp_path / f"c/{number}.wav", voice[: (number + 2) * 5 * HOP - 77], rate)
        rows.append({"audio": f"{number}.wav", "text": f"buzz {number}", "document": f"d{number}"})
    (tmp_path / "c/5.wav").write_text("no sound")
    rows.append({"audio": "5.wav", "text": "nothing", "document": "d5"})
    return write_manifest(tmp_path / "c/m.jsonl", rows)


def run(corpus: str, output: Path, **changed) -> None:
    given = {"codec": SPEC, "validation_fraction": 0.0, "shards": 2, "max_bad_fraction": 0.5}
    encoding.cached_codec.cache_clear()
    tokenize(TokenizeOptions(corpus, str(output), **{**given, **changed}))


def test_codes_are_those_of_each_clip(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(encoding, "PIECE_SECONDS", 2.0)
    run(corpus, tmp_path / "data")
    codec = load_codec(SPEC)
    found = documents_of(tmp_path / "data")
    assert sorted(found) == [f"d{n}" for n in range(5)]
    for number in range(5):
        clip = read_audio(Path(corpus).parent / f"{number}.wav", 24_000)
        codes = encode_long(codec, clip, 2.0)
        np.testing.assert_array_equal(found[f"d{number}"][0].codes, codes)
    assert [row["reason"] for row in quarantine_of(tmp_path / "data")] == ["undecodable"]
    manifest = Manifest.load(tmp_path / "data")
    assert manifest.layout.codebook_sizes == (64,) * 8 and manifest.codec["name"] == "mimi"
    assert load_codec(f"mimi:{tmp_path / 'data' / 'codec'}").fingerprint == codec.fingerprint


def test_a_codec_receives_up_to_clips_at_once_clips_per_call(tmp_path, corpus, monkeypatch):
    given = []
    encode = MimiCodec.encode

    def spy(self, audio):
        given.append(len(audio))
        return encode(self, audio)

    monkeypatch.setattr(MimiCodec, "encode", spy)
    monkeypatch.setattr(encoding, "BATCH_CLIPS", 1)
    run(corpus, tmp_path / "data", shards=1)
    clips = load_codec(SPEC).clips_at_once
    assert clips == 8 and max(given) == 5
    monkeypatch.setattr(MimiCodec, "clips_at_once", 2, raising=False)
    assert [len(b) for b in encoding.batches({(n, 0): 1.0 for n in range(5)}, 2)] == [2, 2, 1]
    assert [row["reason"] for row in quarantine_of(tmp_path / "data")] == ["undecodable"]


def test_two_processes_write_the_same_bytes_as_one(tmp_path, corpus, monkeypatch):
    # One device, not eight as in this process: the batch size per device changes the rounding.
    monkeypatch.setenv("XLA_FLAGS", xla_flags(1))
    for name, workers in (("one", 1), ("two", 2)):
        command = [
            "tokenize",
            f"--input={corpus}",
            f"--output={tmp_path / name}",
            f"--codec={SPEC}",
        ]
        command += ["--validation_fraction=0", "--shards=2", "--max_bad_fraction=0.5"]
        subprocess.run(
            [sys.executable, "-m", "soda_jax.cli", *command, f"--workers={workers}"], check=True
        )
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
