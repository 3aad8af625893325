"""Checkpoints in gs:// through TensorStore, on an emulator of the store; and what needs no store."""

import json

import checkpoint_states as states
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from gcs import require_bucket

from soda_jax.checkpoints import Checkpointer, CheckpointReader, digest, folder
from soda_jax.errors import UserError

STATE = {"params": {"w": jnp.arange(1000.0)}, "step": jnp.int32(0)}


@pytest.fixture
def bucket(tmp_path):
    return f"{require_bucket()}/{tmp_path.name}/checkpoints"


def save(bucket, *steps, keep=3):
    with Checkpointer(bucket, every_steps=1, keep=keep) as checkpointer:
        for step in steps:
            content = {"params": {"w": STATE["params"]["w"] + step}, "step": jnp.int32(step)}
            checkpointer.maybe_save(step, content, {"windows": 10 * step})


def restored_step(bucket):
    state, metadata, report = CheckpointReader(bucket).restore(states.abstract(STATE))
    np.testing.assert_array_equal(np.asarray(state["params"]["w"]), np.arange(1000.0) + report.step)
    assert metadata["windows"] == 10 * report.step
    return report.step


def test_a_bucket_holds_checkpoints_as_a_folder_does(bucket):
    save(bucket, 1, 2, 3, 4, keep=2)
    assert CheckpointReader(bucket).steps() == [3, 4] and restored_step(bucket) == 4
    save(bucket, 5, keep=2)
    assert CheckpointReader(bucket).steps() == [4, 5] and restored_step(bucket) == 5


def test_invariant_8_a_changed_byte_in_a_bucket_is_noticed(bucket, capsys):
    save(bucket, 1, 2)
    files = list(epath.Path(f"{bucket}/2/params/d").iterdir())
    largest = max(files, key=lambda path: path.stat().length)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    assert restored_step(bucket) == 1
    assert f"checkpoint 2 skipped: params/d/{largest.name} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["commit_success.txt", digest.NAME])
def test_invariant_8_a_save_that_was_killed_in_a_bucket_does_not_count_and_is_made_again(
    bucket, lost
):
    save(bucket, 1, 2)
    # The commit marker is written after the arrays, and the digest after the marker.
    (epath.Path(bucket) / "2" / digest.NAME).unlink()
    (epath.Path(bucket) / "2" / lost).unlink(missing_ok=True)
    assert restored_step(bucket) == 1
    reader = CheckpointReader(bucket)
    assert reader.choose().step == 1
    with Checkpointer(bucket, every_steps=1, reader=reader) as checkpointer:
        content = {"params": {"w": STATE["params"]["w"] + 2}, "step": jnp.int32(2)}
        checkpointer.maybe_save(2, content, {"windows": 20})
    assert restored_step(bucket) == 2


def test_invariant_8_what_a_killed_save_left_in_a_bucket_is_removed(bucket):
    save(bucket, 1, 2)
    for name in (digest.NAME, "commit_success.txt"):
        (epath.Path(bucket) / "2" / name).unlink()
    save(bucket, 3)
    assert CheckpointReader(bucket).steps() == [1, 3]
    assert sorted(path.name for path in epath.Path(bucket).iterdir()) == ["1", "3"]


def test_a_bucket_that_is_not_there_is_one_error():
    require_bucket()
    with pytest.raises(UserError, match=r"gs://elsewhere/run: cannot be reached .*bucket exists"):
        save("gs://elsewhere/run", 1)


def test_the_config_sets_the_checkpoint_folder_of_a_run(tmp_path):
    assert folder.of_run(tmp_path) == str(tmp_path / "checkpoints")
    for directory, expected in (
        ("checkpoints", str(tmp_path / "checkpoints")),
        ("/elsewhere", "/elsewhere"),
        ("gs://bucket/run/checkpoints", "gs://bucket/run/checkpoints"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"checkpoint": {"directory": directory}}))
        assert folder.of_run(tmp_path) == folder.of_run(tmp_path, directory) == expected
    (tmp_path / "config.json").write_text(json.dumps({"checkpoint": {"keep": 3}}))  # an older run
    assert folder.of_run(tmp_path) == str(tmp_path / "checkpoints")
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"config.json: invalid run config"):
        folder.of_run(tmp_path)
    assert folder.of_run("gs://bucket/run/") == "gs://bucket/run/checkpoints"


def test_a_url_that_cannot_hold_checkpoints_is_refused(monkeypatch):
    with pytest.raises(
        UserError, match=r"s3://b/run: checkpoints need a local folder or a gs:// URL"
    ):
        CheckpointReader("s3://b/run")
    monkeypatch.setattr(folder, "_GCS_MODULES", ("no_such_module",))
    with pytest.raises(UserError, match=r"gs://b/run needs no_such_module: pip install"):
        CheckpointReader("gs://b/run")
    with pytest.raises(UserError, match=r"--config.checkpoint.directory=gs://b/run/checkpoints"):
        folder.local_workdir("gs://b/run/")
