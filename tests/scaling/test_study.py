"""The files of a study: attempts, locks, settings and the table of results."""

import csv
import dataclasses
import math
import multiprocessing

import pytest
from ml_collections import ConfigDict

from soda_jax.configs import base
from soda_jax.errors import UserError
from soda_jax.scaling.grid import plan_runs
from soda_jax.scaling.results import (
    check_loss,
    last_row,
    result_row,
    seconds_of,
    write_results,
)
from soda_jax.scaling.rules import toy
from soda_jax.scaling.run_config import check_base, check_overrides, job_of
from soda_jax.scaling.study import DONE, FAILED, OPEN, Study
from soda_jax.scaling.table import read_runs


@pytest.fixture(scope="module")
def planned():
    return plan_runs(toy(), [2e11, 2e12], 2310, 256).runs


@pytest.fixture
def study(planned, tmp_path):
    return Study(tmp_path / "mine", [job_of(run, base.default()) for run in planned])


def test_a_job_has_the_settings_of_the_plan_and_those_of_the_base_config(planned):
    config = base.default()
    config.model.remat = "none"
    config.optimizer.weight_decay = 0.7  # changed by a config file
    config.mesh.fsdp = 2
    run = planned[4]
    job = job_of(run, config, kept=["optimizer.z_loss"])  # the default, given as an option
    assert job.config.model.remat == "none" and job.config.optimizer.weight_decay == 0.7
    assert job.config.mesh.fsdp == 2 and job.config.optimizer.z_loss == 1e-4
    assert job_of(run, config).config.optimizer.z_loss == 0
    assert job.config.model.hidden_size == run.shape.width == 32
    assert job.config.optimizer.eps == 1e-15  # the recipe
    assert job.config.steps == run.steps and job.config.optimizer.peak_lr == run.lr
    assert (job.cost, job.vocabulary) == (run.flops, 2310)


def test_settings_of_the_plan_cannot_be_overridden(planned):
    check_overrides(planned[0], ["optimizer.weight_decay", "model.remat", "mesh.fsdp", "seed"])
    for name in ("steps", "batch_size", "optimizer.peak_lr", "model.num_layers"):
        with pytest.raises(UserError, match=rf"--config\.{name}: the plan decides this setting"):
            check_overrides(planned[0], ["model.remat", name])


@pytest.mark.parametrize(
    ("section", "name", "value"), [("evaluate", "tasks", "asr"), ("export", "every_steps", 10)]
)
def test_settings_that_a_study_does_not_use_are_refused(section, name, value):
    config = base.default()
    check_base(config)
    config[section][name] = value
    with pytest.raises(UserError, match=rf"--config\.{section}\.{name}={value} has no effect"):
        check_base(config)


def test_a_run_is_open_until_it_is_finished_or_has_failed_too_often(study):
    run = study.runs[0]
    assert run.status(2) == OPEN and run.attempts().started == ""
    run.start(0)
    run.crashed("out of memory")
    assert run.status(2) == OPEN and run.status(1) == FAILED
    assert run.attempts().error == "out of memory"
    run.start(10)
    run.preempted()
    assert run.attempts().failures == 1
    run.start(20)
    run.diverged("the loss is nan")
    assert run.status(2) == FAILED and run.status(3) == OPEN
    run.start(0)
    run.finish({"loss": 2.0, "ended": "now"})
    assert run.status(2) == DONE


def test_a_divergence_changes_the_seed_and_the_workdir_and_a_crash_does_not(study):
    run = study.runs[0]
    config, first = run.attempt(run.next_seed())
    run.start(0)
    run.crashed("a bug")
    assert run.attempt(run.next_seed()) == (config, first)
    run.start(0)
    run.diverged("the loss is nan")
    other, second = run.attempt(run.next_seed())
    assert other == dataclasses.replace(config, seed=config.seed + 1) and second != first


@pytest.mark.parametrize("directory", ["/data/checkpoints", "gs://bucket/study/"])
def test_runs_do_not_share_a_folder_of_checkpoints(planned, tmp_path, directory):
    config = base.default()
    config.checkpoint.directory = directory
    study = Study(tmp_path, [job_of(run, config) for run in planned])
    found = [run.attempt(seed)[0].checkpoint.directory for run in study.runs for seed in (0, 1)]
    assert len(set(found)) == 2 * len(planned)
    assert found[1] == f"{directory.rstrip('/')}/{study.runs[0].job.name}/seed_1"


def test_a_killed_attempt_counts_only_if_it_made_no_progress(study):
    run = study.runs[0]
    for step in (0, 100, 200):  # the time limit of a cluster
        run.start(step)
    assert run.attempts().failures == 0
    for _ in range(2):
        run.start(200)
    assert run.attempts().failures == 2
    assert run.attempts().error == "the process was killed"


def test_a_half_written_line_is_ignored(study):
    run = study.runs[0]
    run.start(0)
    with (run.folder / "attempts.jsonl").open("a") as file:
        file.write('{"event": "cras')
    assert run.attempts().failures == 0 and run.attempts().started
    run.diverged("the loss is nan")  # the line after it is not
    assert run.attempts().diverged == 1 and run.next_seed() == run.job.config.seed + 1


def _hold(folder, planned, entered, leave):
    run = Study(folder, [job_of(run, base.default()) for run in planned]).runs[0]
    with run.claim() as held:
        entered.put(held)
        leave.wait(30)


def test_only_one_process_claims_a_run_and_its_end_releases_it(study, planned):
    context = multiprocessing.get_context("spawn")
    entered, leave = context.Queue(), context.Event()
    process = context.Process(target=_hold, args=(study.folder, planned, entered, leave))
    process.start()
    assert entered.get(timeout=60)
    assert study.workers() == 1
    with study.runs[0].claim() as held:
        assert not held
    with study.runs[1].claim() as held:
        assert held
    process.kill()  # no chance to clean up
    process.join()
    with study.runs[0].claim() as held:
        assert held


def test_another_plan_or_config_in_the_same_folder_is_refused(study, planned):
    study.save({})
    jobs = [job_of(run, base.default()) for run in planned]
    more = plan_runs(toy(), [2e11, 2e12, 2e13], 2310, 256).runs
    Study(study.folder, [job_of(run, base.default()) for run in more])  # runs may be added
    with pytest.raises(UserError, match=r"with the run isoflop_2e12_d64, which the plan lacks"):
        Study(study.folder, jobs[:-1])
    config = base.default()
    config.model.remat = "dots"
    with pytest.raises(UserError, match=r"isoflop_2e11_d8 has model\.remat = 'full' instead of"):
        Study(study.folder, [job_of(run, config) for run in planned])
    with pytest.raises(UserError, match="isoflop_2e11_d8 twice"):
        Study(study.folder, [jobs[0], jobs[0]])


def test_a_process_with_a_shorter_plan_does_not_remove_rows_of_the_longer_one(study, planned):
    longer = Study(study.folder, [job_of(run, base.default()) for run in planned])
    shorter = Study(study.folder, [job_of(run, base.default()) for run in planned[:4]])
    shorter.save({})
    assert shorter.is_whole()
    longer.save({})  # runs are added while the first process still works
    assert not shorter.is_whole()
    write_results(longer, 1)
    shorter.runs[0].finish({"loss": 2.0, "ended": "now"})
    assert len(write_results(shorter, 1)) == 4
    with (study.folder / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(planned)
    with pytest.raises(UserError, match="which the plan lacks"):
        shorter.save({})
    assert longer.is_whole()


def test_a_study_of_another_process_is_not_overwritten(study, planned):
    config = base.default()
    config.model.remat = "dots"
    other = Study(study.folder, [job_of(run, config) for run in planned])  # at the same time
    study.save({})
    with pytest.raises(UserError, match=r"model\.remat = 'full' instead of 'dots'"):
        other.save({})


def test_a_study_keeps_the_generations_of_its_data_and_refuses_other_data(study, planned):
    config = base.default()
    config.data.sources = ConfigDict({"speech": base.source("speech", 1.0)})
    jobs = [job_of(run, config) for run in planned]
    study = Study(study.folder, jobs)
    run = study.runs[0]
    assert study.generations() == {}
    data = {run.job.name: {"digest": "a" * 64, "generations": {"speech": 3}}}
    study.save(data)
    again = Study(study.folder, jobs)
    again.save(data)
    run.generations = again.generations()
    assert run.attempt(0)[0].data.sources["speech"].generation == 3
    with pytest.raises(UserError, match="is not that with which the study began"):
        again.save({run.job.name: {"digest": "b" * 64, "generations": {"speech": 3}}})


def test_a_bad_folder_is_one_line_and_nothing_is_written(planned, tmp_path):
    jobs = [job_of(run, base.default()) for run in planned]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: give another folder"):
        Study(tmp_path / "file" / "study", jobs)
    with pytest.raises(UserError, match=r"gs://bucket/study: a study must be in a local folder"):
        Study("gs://bucket/study", jobs)
    with pytest.raises(UserError, match=r"--workdir=/proc/study: /proc cannot be written"):
        Study("/proc/study", jobs)
    for content in ("", "[]", "{}", '{"experiment": "a", "configs": 3}'):
        (tmp_path / "study.json").write_text(content)
        with pytest.raises(UserError, match=r"study\.json is not the file of a study"):
            Study(tmp_path, jobs)


def test_the_table_has_a_row_per_run_and_can_be_fitted(study):
    for number, run in enumerate(study.runs[:8]):
        run.start(0)
        loss = 2.0 + 0.01 * (number % 5 - 2) ** 2 - 0.1 * (number // 5)
        run.finish({"loss": loss, "loss/text": 1.0, "vocabulary": 2310, "ended": "now"})
    study.runs[8].start(0)
    study.runs[8].crashed("a bug")
    rows = write_results(study, 1)
    assert [row["status"] for row in rows] == [DONE] * 8 + [FAILED, OPEN]
    with (study.folder / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["loss"] for row in table[8:]] == [""] * 2
    assert {row["experiment"] for row in table} == {"mine"}
    assert table[8]["error"] == "a bug" and table[0]["attempts"] == "1"
    for name in ("results.csv", "results.parquet"):
        runs = read_runs(str(study.folder / name))
        assert len(runs) == 8 and len(runs.set_aside) == 2
        assert runs.loss[0] == pytest.approx(2.04) and runs.classes["text"].tolist() == [1.0] * 8
        assert runs.source["vocabulary"] == 2310


def test_the_row_of_a_run_has_the_classes_but_not_the_sources():
    # A source may have the name of a class.
    metrics = {
        "step": 3, "loss/all": 9.0, "validation/loss/all": 2.0, "validation/loss/text": 1.0,
        "validation/loss/text/all": 3.0, "validation/loss/text/marker": 4.0, "seconds": 0.1,
    }  # fmt: skip
    assert result_row(metrics) == {"loss": 2.0, "loss/text": 1.0}


def test_the_loss_of_an_earlier_step_is_not_the_result(study, tmp_path):
    config = study.runs[0].job.config
    rows = [{"step": step, "loss/all": None} for step in (1, config.steps)]
    assert math.isnan(last_row(rows, config, tmp_path)["loss/all"])
    for damaged in (rows[:1], []):
        with pytest.raises(
            UserError, match=r"metrics\.jsonl does not have step .*checkpoints to repeat"
        ):
            last_row(damaged, config, tmp_path)


def test_the_seconds_of_a_run_include_steps_that_are_not_logged():
    rows = [{"seconds": 9.0}, {"seconds": 1.0}, {"seconds": 1.0}]
    assert seconds_of(rows, 3) == 11
    assert seconds_of(rows, 30) == 11 + 27


def test_a_loss_that_is_no_number_or_worse_than_a_uniform_guess_is_a_divergence():
    assert check_loss({"loss": 6.9}, 1000) == ""
    assert "is nan" in check_loss({"loss": math.nan}, 1000)
    assert "6.92 is above that of a uniform guess, 6.908" in check_loss({"loss": 6.92}, 1000)
    with pytest.raises(UserError, match="no validation split"):
        check_loss({}, 1000)
