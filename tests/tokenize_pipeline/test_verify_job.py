"""`soda tokenize --verify` on what jobs have written, plans and codec included."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_toys import make_corpus, write_manifest

from soda_jax.cli import main
from soda_jax.codecs.mel import MelCodec, MelSettings
from soda_jax.errors import UserError
from tokenize_pipeline import worker
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions
from tokenize_pipeline.retext import retext
from tokenize_pipeline.verify import verify


@pytest.fixture
def data(tmp_path, toy_codec) -> Path:
    """A data set of three generations with both splits."""
    for documents in (4, 6, 8):
        source = make_corpus(tmp_path / "corpus", documents=documents)
        options = TokenizeOptions(
            source,
            str(tmp_path / "data"),
            codec="toy:here",
            validation_fraction=0.3,
            shards=2,
            append=documents > 4,
        )
        tokenize(options)
    return tmp_path / "data"


def verified(data: Path) -> list[Path]:
    """Every file of a data set: --verify promises that each byte is checked."""
    return sorted(path for path in data.rglob("*") if path.is_file())


def test_what_a_job_writes_has_no_fault(data, tmp_path, capsys):
    assert main(["tokenize", "--verify", f"--output={data}"]) == 0
    assert capsys.readouterr().out == f"# {data}: no errors\n"
    text = write_manifest(tmp_path / "t.jsonl", [{"text": "one two"}, {"text": "three " * 9000}])
    tokenize(TokenizeOptions(text, str(tmp_path / "text"), format="text", validation_fraction=0.0))
    retext(data, "bytes", tmp_path / "again")
    for folder in (tmp_path / "text", tmp_path / "again"):
        assert list(verify(folder)) == []


@given(which=st.integers(0, 10_000), place=st.integers(0, 2**40), bit=st.integers(0, 7))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_invariant_8_a_flipped_bit_anywhere_is_found_and_named(data, which, place, bit):
    files = verified(data)
    kinds = {re.sub(r"\d+", "N", path.relative_to(data).as_posix()) for path in files}
    assert kinds == {
        "codec/toy.txt", "manifest.json", "manifests/N.json", "plan/N/plan.json",
        "plan/N/rejected.jsonl", "plan/N/results/train-N.json", "plan/N/results/validation-N.json",
        "plan/N/train-N.jsonl", "plan/N/validation-N.jsonl", "quarantine.jsonl",
        "tokenizer/tokenizer.json", "train/shard-N.array_record", "train/shard-N.index.npz",
        "validation/shard-N.array_record", "validation/shard-N.index.npz",
    }  # fmt: skip
    path = files[which % len(files)]
    sound = path.read_bytes()
    if not sound:  # no row was rejected
        return
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
    options = TokenizeOptions(
        source, str(tmp_path / "data"), codec=f"mel:{tmp_path / 'codec'}", shards=1
    )
    worker.load_codec_once.cache_clear()
    tokenize(options)
    assert list(verify(tmp_path / "data")) == []
    (plan,) = (tmp_path / "data" / "plan").glob("*/plan.json")
    value = json.loads(plan.read_text())
    plan.write_text(json.dumps({**value, "counts": {}}))
    other = MelCodec.fit([noise[::-1].copy()], MelSettings(codebook_sizes=(8, 8)))
    other.save(tmp_path / "data" / "codec")
    worker.load_codec_once.cache_clear()
    assert {fault.file for fault in verify(tmp_path / "data")} == {
        "plan/0000/plan.json", "codec/codec.json", "codec/codec.safetensors"
    }  # fmt: skip


def flip(path: Path, place: int = 40) -> bytes:
    """Flips a bit of a file; returns what it was."""
    sound = path.read_bytes()
    content = bytearray(sound)
    content[place % len(content)] ^= 1
    path.write_bytes(content)
    return sound


def append(data: Path, tmp_path: Path, **changes) -> None:
    source = make_corpus(tmp_path / "corpus", documents=9)
    options = {"codec": "toy:here", "validation_fraction": 0.3, "shards": 2, **changes}
    tokenize(TokenizeOptions(source, str(data), append=True, **options))


@pytest.mark.parametrize(
    "name", ["manifest.json", "tokenizer/tokenizer.json", "quarantine.jsonl", "INDEX"]
)
def test_append_and_retext_refuse_what_they_rely_on_when_it_is_damaged(data, tmp_path, name):
    if name == "quarantine.jsonl":  # with a row in it
        (tmp_path / "corpus/clips/8-0.wav").write_bytes(b"no sound")
        rows = [{"audio": "clips/8-0.wav", "text": "x"}, {"audio": "clips/0-0.wav", "text": "y"}]
        bad = write_manifest(tmp_path / "corpus/bad.jsonl", rows)
        tokenize(
            TokenizeOptions(bad, str(data), codec="toy:here", validation_fraction=0.3, shards=2,
                    append=True, max_bad_fraction=0.6)
        )  # fmt: skip
    path = next(data.glob("train/*.npz")) if name == "INDEX" else data / name
    before = {p: p.read_bytes() for p in data.glob("manifests/*")}
    sound = flip(path)
    with pytest.raises(UserError, match=re.escape(path.name)) as error:
        append(data, tmp_path)
    assert "restore" in str(error.value) and "\n" not in str(error.value)
    if name in ("manifest.json", "quarantine.jsonl"):
        with pytest.raises(UserError, match=re.escape(path.name)):
            retext(data, "bytes", tmp_path / "again")
    assert {p: p.read_bytes() for p in data.glob("manifests/*")} == before
    path.write_bytes(sound)
    append(data, tmp_path)
    assert list(verify(data)) == []


def test_retext_copies_no_damaged_codec(data, tmp_path):
    flip(data / "codec/toy.txt", 2)
    with pytest.raises(UserError, match=r"codec/toy\.txt is damaged: .* restore the folder"):
        retext(data, "bytes", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["plan.json", "rejected.jsonl", "RESULT", "DOCUMENTS"])
def test_a_resumed_job_relies_on_no_damaged_file(tmp_path, toy_codec, name):
    source = Path(make_corpus(tmp_path / "corpus"))
    source.write_text(source.read_text() + "{ no row\n")
    options = TokenizeOptions(
        str(source), str(tmp_path / "data"), codec="toy:here", shards=2, max_bad_fraction=0.5
    )
    whole = tokenize(options).manifest
    data, folder = tmp_path / "data", tmp_path / "data/plan/0000"
    (data / "manifest.json").unlink()  # as of a job that was killed near its end
    path = {
        "RESULT": folder / "results/train-00000.json",
        "DOCUMENTS": folder / "train-00000.jsonl",
    }.get(name, folder / name)
    sound = flip(path)
    if name == "DOCUMENTS":
        assert tokenize(options).manifest == whole  # finished shards do not need it
        (data / "manifest.json").unlink()
        (folder / "results/train-00000.json").unlink()
    if name == "RESULT":
        assert tokenize(options).manifest == whole  # the shard is made again
        assert path.read_bytes() == sound
        return
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*run again"):
        tokenize(options)
    path.write_bytes(sound)
    assert tokenize(options).manifest == whole


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
