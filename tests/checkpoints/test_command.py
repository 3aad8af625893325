import argparse

import checkpoint_states as states
import jax.numpy as jnp
import pytest

from soda_jax.checkpoints import Checkpointer
from soda_jax.commands import checkpoints
from soda_jax.errors import UserError


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    checkpoints.add_arguments(parser)
    return checkpoints.run(parser.parse_args(words))


def test_command_lists_steps_and_names_the_damaged_file(tmp_path, capsys):
    with Checkpointer(tmp_path / "checkpoints", every_steps=1) as checkpointer:
        for step in (1, 2):
            checkpointer.maybe_save(step, {"params": {"w": jnp.zeros(4)}}, {})
    assert call(str(tmp_path)) == 0
    assert capsys.readouterr().out.split() == ["1", "intact", "2", "intact"]
    states.flip_bit(states.largest_file(tmp_path / "checkpoints" / "1", "params"))
    assert call(str(tmp_path)) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert "params/" in first and "is damaged" in first and second.endswith("2  intact")
    states.flip_bit(tmp_path / "checkpoints" / "2" / "digest.json")
    assert call(str(tmp_path)) == 1
    assert "2  digest.json is invalid: it is damaged" in capsys.readouterr().out


def test_the_command_reports_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(UserError, match="no checkpoints in"):
        call(str(tmp_path))
