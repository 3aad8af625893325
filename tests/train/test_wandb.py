"""Metrics to Weights & Biases, the package played by a stand-in."""

import sys
import types

import pytest
from run_toys import Watcher, rows_of, terminate

from soda_jax.errors import UserError
from soda_jax.train.loop import DONE, PREEMPTED, train
from soda_jax.train.wandb import WandbHook


class FakeWandb(types.ModuleType):
    """Stands for the package: notes what it is given."""

    def __init__(self):
        super().__init__("wandb")
        self.starts, self.logged = [], []

    def init(self, **settings):
        self.starts.append(settings)
        return self

    def log(self, values, step):
        self.logged.append((step, values["loss/all"]))


def test_a_resumed_run_goes_on_in_the_same_wandb_run(config, tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    hooks = [WandbHook("songs", 1), Watcher(at=2, action=terminate)]
    assert train(config(), tmp_path, hooks=hooks) == PREEMPTED
    assert train(config(), tmp_path, hooks=[WandbHook("songs", 2)]) == DONE
    first, second = fake.starts
    assert first["project"] == second["project"] == "songs" and first["config"]["steps"] == 6
    assert first["id"] == second["id"] == (tmp_path / "wandb_id").read_text().strip() != ""
    assert first["resume"] == second["resume"] == "allow"
    losses = {row["step"]: row["loss/all"] for row in rows_of(tmp_path)}
    assert fake.logged == [(step, losses[step]) for step in (1, 2, 4, 6)]


def test_wandb_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is missing: pip install 'soda-jax\[wandb\]'"):
        WandbHook("songs", 1)
