"""Metrics to Weights & Biases, with a fake of the package."""

import sys
import types

import pytest
from run_toys import KilledError, Watcher, kill, rows_of, terminate

from soda_jax.errors import UserError
from soda_jax.train import loop
from soda_jax.train.loop import DONE, PREEMPTED, train


class FakeWandb(types.ModuleType):
    """A fake of the package that records its calls."""

    def __init__(self):
        super().__init__("wandb")
        self.starts, self.events, self.metrics = [], [], []

    def init(self, **settings):
        self.starts.append(settings)
        return self

    def log(self, values, step):
        self.events.append(("log", step))
        self.metrics.append({"step": step, **values})

    def finish(self):
        self.events.append(("finish",))

    @property
    def logged(self):
        return [event[1] for event in self.events if event[0] == "log"]


@pytest.fixture
def fake(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_each_step_once_and_in_order_while_the_next_one_runs(
    fake, config, tmp_path, monkeypatch
):
    real = loop.make_program

    def watched(*arguments, **options):
        program = real(*arguments, **options)
        step, count = program.step, iter(range(1, 99))

        def noted(*arguments):
            fake.events.append(("run", next(count)))
            return step(*arguments)

        program.step = noted
        return program

    monkeypatch.setattr(loop, "make_program", watched)
    assert train(config(log__wandb_project="songs", checkpoint__every_steps=0), tmp_path) == DONE
    expected = [("run", 1)]
    for step in range(2, 7):
        expected += [("run", step), ("log", step - 1)]
    assert fake.events == [*expected, ("log", 6), ("finish",)]
    assert fake.metrics == rows_of(tmp_path)


def test_a_resumed_run_continues_the_same_wandb_run(fake, config, tmp_path):
    settings = config(log__wandb_project="songs")
    assert train(settings, tmp_path, hooks=[Watcher(at=2, action=terminate)]) == PREEMPTED
    seldom = config(log__wandb_project="songs", log__every_steps=4)
    assert train(seldom, tmp_path) == DONE
    first, second = fake.starts
    assert first["project"] == second["project"] == "songs" and first["config"]["steps"] == 6
    assert first["id"] == second["id"] == (tmp_path / "wandb_id").read_text().strip() != ""
    assert first["resume"] == second["resume"] == "allow"
    assert fake.logged == [1, 2, 4, 6] and fake.events.count(("finish",)) == 2
    # A finished run logs nothing.
    assert train(settings, tmp_path) == DONE and len(fake.starts) == 2


def test_a_run_that_fails_has_sent_its_steps_and_does_not_wait_for_the_network(
    fake, config, tmp_path
):
    settings = config(log__wandb_project="songs")
    with pytest.raises(KilledError):
        train(settings, tmp_path, hooks=[Watcher(every=4, at=4, action=kill)])
    assert fake.logged == [1, 2, 3] and ("finish",) not in fake.events


def test_wandb_that_is_not_installed_is_named_before_anything_is_written(
    config, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is missing: pip install 'soda-jax\[wandb\]'"):
        train(config(log__wandb_project="songs"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
