"""Invariant 8 of the design: nothing is lost, and skipped checkpoints are reported."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import checkpoint_states as states
import jax.numpy as jnp
import numpy as np
import pytest

from soda_jax.checkpoints import Checkpointer, CheckpointReader, digest
from soda_jax.errors import UserError

STATE = {"params": {"w": jnp.arange(1000.0)}, "step": jnp.int32(0)}


@pytest.fixture
def three(tmp_path):
    """A folder with sealed steps 1, 2, 3; step n holds arange(1000) + n."""
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        for step in (1, 2, 3):
            content = {"params": {"w": STATE["params"]["w"] + step}, "step": jnp.int32(step)}
            checkpointer.maybe_save(step, content, {"windows": 10 * step})
    return tmp_path


def restored_step(folder: Path, **options) -> int:
    state, metadata, report = CheckpointReader(folder).restore(states.abstract(STATE), **options)
    np.testing.assert_array_equal(np.asarray(state["params"]["w"]), np.arange(1000.0) + report.step)
    assert metadata["windows"] == 10 * report.step
    return report.step


def test_invariant_8_flipped_byte_is_noticed(three, capsys):
    for path in sorted(path for path in (three / "3").rglob("*") if path.is_file()):
        if path.name == digest.NAME:
            continue
        intact = path.read_bytes()
        states.flip_bit(path)
        assert restored_step(three) == 2
        assert f"checkpoint 3 skipped: {path.relative_to(three / '3')} is damaged" in (
            capsys.readouterr().err
        )
        path.write_bytes(intact)
    assert restored_step(three) == 3


def test_invariant_8_damage_to_the_digest_is_reported_as_its_own(three):
    """Its file names and sums may be flipped: no other file is blamed."""
    path = three / "3" / digest.NAME
    sound = path.read_bytes()
    reader = CheckpointReader(three)
    for offset in range(len(sound)):
        content = bytearray(sound)
        content[offset] ^= 1 << offset % 8
        path.write_bytes(content)
        assert reader.flaw(3).startswith(f"{digest.NAME} is invalid: it is damaged")
    assert reader.choose().skipped == ((3, reader.flaw(3)),)
    path.write_bytes(sound)
    assert CheckpointReader(three).choose().step == 3


def test_invariant_8_damaged_digest_is_noticed(three):
    states.flip_bit(three / "3" / digest.NAME)
    (three / "2" / digest.NAME).write_text("{")
    assert restored_step(three) == 1


def test_invariant_8_truncated_and_missing_files_are_noticed(three):
    path = states.largest_file(three / "3")
    path.write_bytes(path.read_bytes()[:-10])
    states.largest_file(three / "2").unlink()
    report = CheckpointReader(three).choose()
    assert report.step == 1
    (step3, reason3), (step2, reason2) = report.skipped
    assert (step3, step2) == (3, 2)
    assert "bytes" in reason3 and "is missing" in reason2
    assert report.lines()[-1] == "continuing from checkpoint 1"


def test_invariant_8_when_none_is_valid_every_reason_is_reported(three):
    for step in (1, 2, 3):
        states.flip_bit(states.largest_file(three / str(step)))
    with pytest.raises(UserError) as error:
        CheckpointReader(three).choose()
    assert all(f"{step}: " in str(error.value) for step in (1, 2, 3))


def test_invariant_8_a_requested_step_is_used_or_refused_never_replaced(three):
    assert restored_step(three, step=2) == 2
    states.flip_bit(states.largest_file(three / "2"))
    with pytest.raises(UserError, match=r"2: .* is damaged"):
        restored_step(three, step=2)
    with pytest.raises(UserError, match="9: there is no such checkpoint"):
        restored_step(three, step=9)


def test_invariant_8_unsealed_step_is_taken_only_when_asked(three, capsys):
    (three / "3" / digest.NAME).unlink()
    assert restored_step(three) == 2
    assert restored_step(three, accept_unverified=True) == 3
    assert "checkpoint 3 is used without verification" in capsys.readouterr().err
    (three / "3" / digest.NAME).write_text("{}")  # a digest that disagrees is never taken
    assert restored_step(three, accept_unverified=True) == 2


def test_invariant_8_bad_steps_do_not_push_good_ones_out(three):
    """Resuming below damaged newer steps must not let the keep-policy count those as kept."""
    for step in (2, 3):
        states.flip_bit(states.largest_file(three / str(step)))
    with Checkpointer(three, every_steps=1, keep=2) as checkpointer:
        assert checkpointer.restore(states.abstract(STATE))[2].step == 1
        content = {"params": {"w": STATE["params"]["w"] + 2}, "step": jnp.int32(2)}
        checkpointer.maybe_save(2, content, {"windows": 20})  # replaces the damaged step 2
        checkpointer.wait()
        assert checkpointer.reader.steps() == [1, 2, 3]
    assert restored_step(three) == 2  # 3 is still damaged
    with Checkpointer(three, every_steps=1, keep=2) as checkpointer:
        checkpointer.restore(states.abstract(STATE))
        for step in (3, 4):
            content = {"params": {"w": STATE["params"]["w"] + step}, "step": jnp.int32(step)}
            checkpointer.maybe_save(step, content, {"windows": 10 * step})
    assert CheckpointReader(three).steps() == [3, 4]
    assert restored_step(three) == 4


def test_invariant_8_failing_save_is_reported_and_leaves_older_ones(three, caplog):
    """A file size limit imitates a full disk: writing fails half-way."""
    big = {"params": {"w": jnp.ones(1_000_000)}, "step": jnp.int32(4)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpointer = Checkpointer(three, every_steps=1)
    checkpointer.restore(states.abstract(STATE))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        with pytest.raises(
            UserError, match=f"{three}: saving step 4 failed.*File too large.*disk full"
        ):
            checkpointer.maybe_save(4, big, {})
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not caplog.records  # one line for the user, no traceback
    assert checkpointer.reader.choose().step == 3
    assert checkpointer.maybe_save(5, big, {})  # space was made: the run may go on
    checkpointer.close()
    checkpointer.close()
    assert sorted(path.name for path in three.iterdir()) == ["2", "3", "5"]
    assert CheckpointReader(three).choose().step == 5


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from soda_jax.checkpoints import Checkpointer, digest
from orbax.checkpoint.path import atomicity

folder, moment = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

checkpointer = Checkpointer(folder, every_steps=1)
def save(step):
    state = {"params": {"w": jnp.arange(1000.0) + step}, "step": jnp.int32(step)}
    checkpointer.maybe_save(step, state, {"windows": 10 * step})
save(1)
checkpointer.wait()
if moment == "before commit":
    atomicity.AtomicRenameTemporaryPath.finalize = die
else:
    digest.write_digest = die
save(2)
checkpointer.close()
"""


@pytest.mark.parametrize("moment", ["before commit", "before seal"])
def test_invariant_8_killed_save_leaves_older_one(tmp_path, moment):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], timeout=120)
    assert done.returncode == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir() if path.name != "1"]
    assert len(left) == 1 and left[0].startswith("2")  # what the killed save left
    assert CheckpointReader(tmp_path).steps() == ([1] if moment == "before commit" else [1, 2])
    assert restored_step(tmp_path) == 1
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.restore(states.abstract(STATE))
        content = {"params": {"w": STATE["params"]["w"] + 2}, "step": jnp.int32(2)}
        assert checkpointer.maybe_save(2, content, {"windows": 20})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    assert restored_step(tmp_path) == 2
