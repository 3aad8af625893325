"""`soda tokenize --verify` on what jobs have written, plans and codec included."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_toys import make_corpus, write_manifest

from soda_jax.cli import main
from soda_jax.codecs.mel import MelCodec, MelSettings
from tokenize_pipeline import worker
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import Options
from tokenize_pipeline.retext import retext
from tokenize_pipeline.verify import verify


@pytest.fixture
def data(tmp_path, toy_codec) -> Path:
    """A data set of three generations with both splits."""
    for documents in (4, 6, 8):
        source = make_corpus(tmp_path / "corpus", documents=documents)
        options = Options(
            source,
            str(tmp_path / "data"),
            codec="toy:here",
            validation_fraction=0.3,
            shards=2,
            append=documents > 4,
        )
        tokenize(options)
    return tmp_path / "data"


def verified(*paths: Path | str) -> list[Path]:
    """The files of a data set of which --verify promises that each byte is checked."""
    patterns = ("*/*.array_record", "*/*.index.npz", "manifest.json", "manifests/*.json")
    return sorted(path for pattern in patterns for path in Path(*paths).glob(pattern))


def test_what_a_job_writes_has_no_fault(data, tmp_path, capsys):
    assert main(["tokenize", "--verify", f"--output={data}"]) == 0
    assert capsys.readouterr().out == f"# {data}: no fault\n"
    text = write_manifest(tmp_path / "t.jsonl", [{"text": "one two"}, {"text": "three " * 9000}])
    tokenize(Options(text, str(tmp_path / "text"), format="text", validation_fraction=0.0))
    retext(data, "bytes", tmp_path / "again")
    for folder in (tmp_path / "text", tmp_path / "again"):
        assert list(verify(folder)) == []


@given(which=st.integers(0, 10_000), place=st.integers(0, 2**40), bit=st.integers(0, 7))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_invariant_8_a_flipped_bit_anywhere_is_found_and_named(data, which, place, bit):
    files = verified(data)
    assert len(files) > 10
    path = files[which % len(files)]
    sound = path.read_bytes()
    content = bytearray(sound)
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        faults = [fault.describe() for fault in verify(data)]
    finally:
        path.write_bytes(sound)
    name = path.relative_to(data).as_posix()
    # Two manifests that contradict each other are named both: either may be the damaged one.
    short = name.removeprefix("manifests/")
    assert any(name in text or (short in text and "differ" in text) for text in faults), faults


def test_the_status_is_1_and_the_lines_are_those_of_a_masked_file(data, capsys):
    shard = next(path for path in verified(data) if path.suffix == ".array_record")
    content = bytearray(shard.read_bytes())
    content[70_000:] = b""
    shard.write_bytes(content)
    assert main(["tokenize", "--verify", f"--output={data}"]) == 1
    printed = capsys.readouterr().out
    assert main(["inspect", str(data), "--verify"]) == 1
    assert capsys.readouterr().out == printed
    name = shard.relative_to(data).as_posix()
    entries = [line for line in printed.splitlines() if not line.startswith("#")]
    assert entries and entries == [f"{name} {n}" for n in range(len(entries))]


def test_an_altered_plan_or_codec_is_found(tmp_path):
    source = make_corpus(tmp_path / "corpus")
    noise = np.random.default_rng(0).normal(0, 0.1, 60_000).astype(np.float32)
    MelCodec.fit([noise], MelSettings(codebook_sizes=(8, 8))).save(tmp_path / "codec")
    options = Options(source, str(tmp_path / "data"), codec=f"mel:{tmp_path / 'codec'}", shards=1)
    worker.load_codec_once.cache_clear()
    tokenize(options)
    assert list(verify(tmp_path / "data")) == []
    (plan,) = (tmp_path / "data" / "plan").glob("*/plan.json")
    value = json.loads(plan.read_text())
    plan.write_text(json.dumps({**value, "counts": {}}))
    other = MelCodec.fit([noise[::-1].copy()], MelSettings(codebook_sizes=(8, 8)))
    other.save(tmp_path / "data" / "codec")
    worker.load_codec_once.cache_clear()
    assert [fault.file for fault in verify(tmp_path / "data")] == ["plan/0000/plan.json", "codec"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verify", "--output=/nowhere/at/all"], "cannot read the manifest"),
        (["--verify", "--output=x", "--direct_num_workers=2"], "unknown to --verify"),
        (["--output=x"], "--input is missing"),
    ],
)
def test_wrong_commands_are_one_line(arguments, message, capsys):
    assert main(["tokenize", *arguments]) == 2
    assert message in capsys.readouterr().err
