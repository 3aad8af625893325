"""`soda scaling run` with real training on a tiny data set."""

import math
import shutil
from pathlib import Path

import pytest
from run_toys import Watcher, rows_of, terminate
from train_toys import write_generation

from soda_jax.errors import UserError
from soda_jax.evaluate.loss import LossHook
from soda_jax.scaling.execute import run_study
from soda_jax.scaling.results import rows_of as table_of
from soda_jax.scaling.study import DONE, FAILED, Job, Study
from soda_jax.schema import run_config
from soda_jax.train import program_cache
from soda_jax.train.loop import PREEMPTED, train

LIMIT = 2


@pytest.fixture
def study_of(config, tmp_path):
    """study_of(name=steps, …): a study of runs that differ in their length."""

    def make(vocabulary=0, **steps):
        jobs = [
            Job(name, run_config(config(steps=count)), float(count), {"size": 1}, vocabulary)
            for name, count in steps.items()
        ]
        return Study(tmp_path / "study", jobs)

    return make


def test_runs_share_a_program_and_have_the_losses_of_soda_train(
    study_of, config, tmp_path, monkeypatch, capfd
):
    made = []
    real = program_cache.make_program

    def counted(*arguments, **options):
        made.append(real(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(program_cache, "make_program", counted)
    study = study_of(short=16, long=24)
    assert run_study(study, LIMIT) == 0
    assert len(made) == 1 and made[0].step.jitted._cache_size() == 1
    assert "2 of 2 runs finished" in capfd.readouterr().err
    rows = table_of(study, LIMIT)
    for row, steps in zip(rows, (16, 24), strict=True):
        alone = tmp_path / f"alone_{steps}"
        train(config(steps=steps), alone, hooks=[LossHook(steps, 16)])
        expected = rows_of(alone)[-1]
        assert row["status"] == DONE and row["attempts"] == 1
        assert row["loss"] == pytest.approx(expected["validation/loss/all"], rel=1e-6)
        assert row["loss/text"] == pytest.approx(expected["validation/loss/text"], rel=1e-6)
        assert row["started"] <= row["ended"]
    assert rows[0]["loss"] != rows[1]["loss"]
    # The messages of a run are in its log, and a second call trains nothing.
    assert "step 16/16" in (study.runs[0].folder / "seed_0" / "log.txt").read_text()
    # It writes the table again: a process may have been killed between the last run and the table.
    table = study.folder / "results.csv"
    content = table.read_text()
    table.unlink()
    assert run_study(study, LIMIT, train_run=lambda *_, **__: pytest.fail("trained again")) == 0
    assert table.read_text() == content


def test_a_run_without_the_metrics_of_its_last_step_is_one_line(study_of, capfd):
    study = study_of(only=16)
    assert run_study(study, LIMIT) == 0
    (study.runs[0].folder / "result.json").unlink()  # killed before the result was written
    assert run_study(study, LIMIT) == 0 and table_of(study, LIMIT)[0]["attempts"] == 1
    (study.runs[0].folder / "result.json").unlink()
    (study.runs[0].folder / "seed_0" / "metrics.jsonl").unlink()
    assert run_study(study, LIMIT) == 1
    assert "metrics.jsonl does not have step 16" in capfd.readouterr().err


def failing(times, error):
    """Returns a `train` that raises `error` in the first `times` calls, and the list of workdirs."""
    workdirs = []

    def train_run(config, workdir, **options):
        workdirs.append(workdir.name)
        if len(workdirs) <= times:
            raise error
        return train(config, workdir, **options)

    return train_run, workdirs


def test_a_crash_is_repeated_and_other_runs_are_trained(study_of, capfd):
    study = study_of(first=16, second=16)
    train_run, workdirs = failing(2, RuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    assert run_study(study, LIMIT, train_run) == 1
    first, second = table_of(study, LIMIT)
    assert (first["status"], second["status"]) == (FAILED, DONE)
    assert first["attempts"] == 2 and "loss" in second and first["loss"] is None
    assert first["error"] == "RuntimeError: RESOURCE_EXHAUSTED: out of memory"
    message = capfd.readouterr().err
    assert "first: failed 2 times: RuntimeError" in message and "a higher --attempts" in message
    assert run_study(study, LIMIT + 1) == 0  # a higher limit tries again
    assert table_of(study, LIMIT + 1)[0]["attempts"] == 3
    assert workdirs == ["seed_0", "seed_0", "seed_0"]


def test_an_interrupt_of_the_user_is_no_failure(study_of):
    study = study_of(only=16)
    train_run, _ = failing(1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_study(study, 1, train_run)
    assert run_study(study, 1, train_run) == 0
    assert table_of(study, 1)[0]["attempts"] == 1


def test_a_run_that_is_impossible_is_not_repeated_at_once(study_of):
    study = study_of(only=16)
    train_run, workdirs = failing(9, UserError("batch_size = 7 cannot be split"))
    assert run_study(study, 5, train_run) == 1
    assert workdirs == ["seed_0"] and table_of(study, 5)[0]["attempts"] == 1


def test_a_diverged_run_is_repeated_with_another_seed(study_of, monkeypatch):
    study = study_of(only=16)
    real, calls = LossHook.__call__, []

    def diverge_once(self, view):
        calls.append(view.config.seed)
        values = real(self, view)
        return dict.fromkeys(values, math.nan) if len(calls) == 1 else values

    monkeypatch.setattr(LossHook, "__call__", diverge_once)
    assert run_study(study, LIMIT) == 0
    (row,) = table_of(study, LIMIT)
    assert calls == [0, 1] and (row["seed"], row["attempts"]) == (1, 2)
    assert math.isfinite(row["loss"])


def test_a_preempted_study_continues_from_the_checkpoint(study_of, config, tmp_path):
    study = study_of(first=24, second=16)

    def stopped(settings, workdir, *, hooks, **options):
        return train(settings, workdir, hooks=[*hooks, Watcher(1, 3, terminate)], **options)

    assert run_study(study, LIMIT, stopped) == PREEMPTED
    assert study.runs[0].result() is None
    assert run_study(study, LIMIT) == 0
    assert "resumed from step 3" in (study.runs[0].folder / "seed_0" / "log.txt").read_text()
    alone = tmp_path / "alone"
    train(config(steps=24), alone, hooks=[LossHook(24, 16)])
    expected = rows_of(alone)[-1]["validation/loss/all"]
    first, second = table_of(study, LIMIT)
    assert first["loss"] == pytest.approx(expected, rel=1e-6) and first["attempts"] == 1
    assert second["status"] == DONE


@pytest.mark.parametrize("where", ["last step", "between runs"])
def test_sigterm_at_the_end_of_a_run_stops_the_study(study_of, where):
    study = study_of(first=16, second=16)

    def stopped(settings, workdir, *, hooks, **options):
        last = [Watcher(16, 16, terminate)] if where == "last step" else []
        status = train(settings, workdir, hooks=[*hooks, *last], **options)
        if not last:
            terminate()
        return status

    assert run_study(study, LIMIT, stopped) == PREEMPTED
    assert [row["status"] for row in table_of(study, LIMIT)] == [DONE, "open"]
    assert study.runs[1].attempts().started == ""


def test_a_run_of_another_process_is_left_to_it(study_of):
    study = study_of(first=16, second=16)
    study.runs[0].start(0)
    study.runs[0].crashed("a crash that the other process repeats")
    with study.runs[0].claim() as held:
        assert held
        assert run_study(study, LIMIT) == 0
    assert [row["status"] for row in table_of(study, LIMIT)] == ["open", DONE]


def test_runs_after_an_append_read_the_data_of_the_earlier_ones(config, datasets, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(datasets, folder)
    settings = config(steps=8)
    for source in settings.data.sources.values():
        source.path = str(folder / Path(source.path).name)
    jobs = [Job(name, run_config(settings), 8.0, {}) for name in ("first", "second")]

    def append_after(settings, workdir, **options):
        status = train(settings, workdir, **options)
        if workdir.parent.name == "first":
            write_generation(folder / "text", "text", 2, 60)
        return status

    assert run_study(Study(tmp_path / "study", jobs), LIMIT, append_after) == 0
    first, second = table_of(Study(tmp_path / "study", jobs), LIMIT)
    assert first["loss"] == second["loss"]
    (tmp_path / "study" / "runs" / "second" / "result.json").unlink()
    shutil.rmtree(tmp_path / "study" / "runs" / "second" / "seed_0")
    jobs.append(Job("third", run_config(settings), 8.0, {}))  # added by a longer plan
    study = Study(tmp_path / "study", jobs)
    assert run_study(study, LIMIT) == 0
    assert {row["loss"] for row in table_of(study, LIMIT)} == {first["loss"]}
    shutil.rmtree(folder / "text")
    write_generation(folder / "text", "text", 5, 60)
    with pytest.raises(UserError, match="is not that with which the study began"):
        run_study(Study(tmp_path / "study", jobs), LIMIT)


def test_data_of_another_vocabulary_is_refused_before_training(study_of):
    study = study_of(vocabulary=144_644, first=16)
    with pytest.raises(UserError, match=r"ids, but the plan is for 144,644; write it again with"):
        run_study(study, LIMIT)
    assert not study.folder.exists()
