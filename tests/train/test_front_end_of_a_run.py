"""Tokenizer, codec and fingerprints of a run: what is damaged is refused, replaced or repaired."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_toys import rows_of
from train_toys import CODEC, write_datasets

from soda_jax.checkpoints import CheckpointReader, digest, folder
from soda_jax.cli import main
from soda_jax.convert.card import model_card
from soda_jax.data.format.manifest import Manifest
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, differences, folder_sums
from soda_jax.train import repair as repairs
from soda_jax.train.loop import DONE, train

RIGHT = "5e5b8a0f3c0d4b7e9a1f6c2d8e4b7a90"
WRONG = RIGHT.replace("3c0d", "3c2d")  # one bit of one character


def flip(path: Path, offset: int = 12, bit: int = 0) -> bytes:
    """Flips a bit of a file; returns what it was."""
    sound = path.read_bytes()
    content = bytearray(sound)
    content[offset % len(content)] ^= 1 << bit
    path.write_bytes(content)
    return sound


def set_codec(data: Path, fingerprint: str) -> None:
    """Writes the manifest of the speech data anew, with a codec of another fingerprint."""
    manifest = Manifest.load(data)
    shutil.rmtree(data / "manifests")
    codec = {**CODEC, "fingerprint": fingerprint}
    sums = folder_sums(data, *FRONT_END)
    dataclasses.replace(manifest, codec=codec, front_end_files=sums).save(data)


@pytest.fixture
def data(tmp_path) -> Path:
    """Data sets, of which the one of speech has a codec."""
    folder = write_datasets(tmp_path / "data")
    (folder / "speech/codec").mkdir()
    (folder / "speech/codec/codec.json").write_text('{"name": "toy"}')
    set_codec(folder / "speech", RIGHT)
    return folder


@pytest.fixture
def short(config, data):
    """short(steps): a config on that data."""

    def make(steps: int, **changes):
        paths = {f"data__sources__{name}__path": str(data / name) for name in ("speech", "text")}
        return config(steps=steps, **paths, **changes)

    return make


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "codec/codec.json"])
def test_no_damaged_file_of_a_data_set_is_copied(short, data, tmp_path, name):
    sound = flip(data / "speech" / name)
    with pytest.raises(UserError, match=f"speech/{name} is damaged: .*; restore it from a backup"):
        train(short(2), tmp_path / "run")
    assert not (tmp_path / "run" / name).exists()
    (data / "speech" / name).write_bytes(sound)
    assert train(short(2), tmp_path / "run") == DONE
    assert (tmp_path / "run" / name).read_bytes() == sound
    # The copy of the run is damaged, then restored from the data; a damaged data set is no source.
    flip(tmp_path / "run" / name)
    flip(data / "speech" / name)
    with pytest.raises(UserError, match=f"speech/{name} is damaged"):
        train(short(4), tmp_path / "run")
    (data / "speech" / name).write_bytes(sound)
    assert train(short(4), tmp_path / "run") == DONE
    assert (tmp_path / "run" / name).read_bytes() == sound and len(rows_of(tmp_path / "run")) == 4
    # The run needs no intact folder of the data once it has its own.
    flip(data / "speech" / name)
    assert train(short(6), tmp_path / "run") == DONE


def test_a_run_with_the_fingerprint_of_a_damaged_manifest_is_repaired(
    short, data, tmp_path, capsys, monkeypatch
):
    run = tmp_path / "run"
    set_codec(data / "speech", WRONG)  # as a release read it that did not check manifests
    assert train(short(4), run) == DONE
    set_codec(data / "speech", RIGHT)
    with pytest.raises(UserError, match=rf"{WRONG}; they differ.* --repair={data / 'speech'}"):
        train(short(6), run, allow_data_change=True)
    sound = flip(run / "codec/codec.json")
    # Killed after the digest of the first step is written.
    with monkeypatch.context() as patch:
        patch.setattr(digest, "_write", lambda *a, write=digest._write: (write(*a), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            repairs.repair(run, str(data / "speech"))
    reader = CheckpointReader(run / "checkpoints")
    assert [reader.flaw(step) for step in reader.steps()].count(None) == 1
    assert main(["checkpoints", str(run), f"--repair={data / 'speech'}"]) == 0
    replaced = f"fingerprints replaced by those of {data / 'speech'}"
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        f"checkpoint 2: {replaced}".split(),
        f"checkpoint 4: {replaced}".split(),
        ["2", "intact"],
        ["4", "intact"],
    ]
    assert (run / "codec/codec.json").read_bytes() == sound
    assert train(short(6), run, allow_data_change=True) == DONE
    metadata = [reader.metadata(step) for step in CheckpointReader(run / "checkpoints").steps()]
    assert [m["codec_fingerprint"] for m in metadata] == [RIGHT] * 3
    assert main(["checkpoints", str(run), f"--repair={data / 'speech'}"]) == 0
    assert "fingerprints" not in capsys.readouterr().out


def test_repair_takes_no_other_data_and_no_damaged_checkpoint(short, data, tmp_path):
    run = tmp_path / "run"
    assert train(short(4), run) == DONE
    set_codec(data / "speech", RIGHT[::-1])
    with pytest.raises(UserError, match="not a flipped bit; set --repair to a data set"):
        repairs.repair(run, str(data / "speech"))
    set_codec(data / "speech", WRONG)
    flip(run / "checkpoints/4/digest.json")
    with pytest.raises(UserError, match=r"4 was not changed: digest.json is invalid"):
        repairs.repair(run, str(data / "speech"))
    flip(data / "speech/manifest.json")
    with pytest.raises(UserError, match=r"manifest.json: it is damaged"):
        repairs.repair(run, str(data / "speech"))
    with pytest.raises(UserError, match="no checkpoints in"):
        set_codec(data / "text", RIGHT)
        repairs.repair(tmp_path / "nowhere", str(data / "text"))


def test_a_flipped_bit_in_any_metadata_file_of_a_run_is_found_or_changes_nothing(
    short, data, tmp_path
):
    """Except two logs, every file outside the array data is damaged in turn."""
    run, random = tmp_path / "run", np.random.default_rng(0)
    assert train(short(2), run) == DONE
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    names -= {name for name in names if "/params/" in name or "/training/" in name}
    assert names == {
        "config.json", "data.json", "metrics.jsonl", "tokenizer/tokenizer.json", "codec/codec.json",
        "checkpoints/2/digest.json", "checkpoints/2/metadata/metadata",
        "checkpoints/2/_CHECKPOINT_METADATA", "checkpoints/2/commit_success.txt",
        "checkpoints/2/metadata/commit_success.txt", "starts.jsonl",
    }  # fmt: skip
    logs = {"metrics.jsonl", "starts.jsonl"}
    metadata = CheckpointReader(run / "checkpoints").metadata(2)
    sums = metadata["front_end"]

    def found(name: str) -> str:
        """What the readers of a file find wrong with it, "" if nothing."""
        if name.startswith("checkpoints/"):
            return CheckpointReader(run / "checkpoints").flaw(2) or ""
        if name.startswith(FRONT_END):
            return next(differences(run, sums, name.split("/")[0]), ("", ""))[1]
        try:
            if name == "data.json":
                model_card(run, metadata, 2, name="x", parameters=1, dtype="float32")
            else:  # of the config only the folder of the checkpoints is read again
                directory = CheckpointReader(folder.of_run(run)).directory
                return "" if directory == run / "checkpoints" else "no checkpoints"
        except UserError as error:
            return str(error)
        return ""

    for name in sorted(names - logs):
        size = (run / name).stat().st_size
        for offset in random.integers(0, size, 40).tolist():
            sound = flip(run / name, offset, int(random.integers(8)))
            reason = found(name)
            (run / name).write_bytes(sound)
            assert reason or name == "config.json", (name, offset)
            if name.startswith("checkpoints/"):  # a damaged digest.json names no other file
                assert name.removeprefix("checkpoints/2/") in reason
        assert not found(name), name
