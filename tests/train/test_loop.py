"""Whole runs: resuming, hooks, metrics, traces, settings that do not fit."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from run_toys import (
    CLOCKS,
    KilledError,
    Watcher,
    assert_same_run,
    kill,
    rows_of,
    stored_state,
    terminate,
)
from train_toys import LAYOUT, make_batch

from soda_jax.checkpoints import CheckpointReader
from soda_jax.data.dataset import make_dataset
from soda_jax.errors import UserError
from soda_jax.parallel import mesh, rules
from soda_jax.plan.hlo import parse_module
from soda_jax.schema import run_config
from soda_jax.train import loop
from soda_jax.train import program as programs
from soda_jax.train.loop import DONE, PREEMPTED, train
from soda_jax.train.run_files import open_data
from soda_jax.train.start import FreshStart


def test_hooks_are_called_at_their_steps_and_after_the_last_one(whole):
    workdir, hook = whole
    assert hook.steps == [4, 6]
    where, metrics, sources = hook.views[0]
    assert where == workdir and sources == ("speech", "text")
    rows = rows_of(workdir)
    assert metrics["loss/all"] == rows[3]["loss/all"] and "watched/twice" not in metrics
    assert [row.get("watched/twice") for row in rows] == [None, None, None, 8.0, None, 12.0]


def test_metrics_hold_the_loss_vector_and_the_rates_of_every_step(whole):
    rows = rows_of(whole[0])
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    names = {f"loss/{name}" for name in (*LAYOUT.class_names, "all", "speech/all", "text/text")}
    others = {"loss", "z_loss", "gradient_norm", "parameter_norm", "skipped", "skipped_in_a_row"}
    for row in rows:
        assert {*names, *others, *CLOCKS, "learning_rate"} <= row.keys()
        assert "loss/text/semantic" not in row  # the text source has no audio
        assert all(np.isfinite(value) for value in row.values())
        assert 0 < row["loss/all"] < 2 * np.log(LAYOUT.size)
        assert row["loss"] == pytest.approx(row["loss/all"] + row["z_loss"], rel=1e-5)
        assert row["skipped"] == row["skipped_in_a_row"] == 0
        assert row["tokens_per_second"] == pytest.approx(8 * 32 / row["seconds"])
        assert row["mfu"] > 0 and row["audio_seconds_per_second"] > 0
    # 10% warm-up and 20% decay of six steps are one each.
    assert [row["learning_rate"] for row in rows] == pytest.approx([0, *[0.01] * 5])
    assert rows[-1]["parameter_norm"] != rows[0]["parameter_norm"]


def test_a_run_leaves_what_is_needed_to_use_it(whole, datasets):
    workdir, _ = whole
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["hidden_size"] == 16 and config["steps"] == 6
    data = json.loads((workdir / "data.json").read_text())
    assert data["sources"]["speech"]["windows"] > 30
    assert (workdir / "tokenizer" / "tokenizer.json").is_file()
    _, metadata = stored_state(workdir, 6)
    assert metadata["windows"] == 48 and metadata["data_digest"] == data["digest"]
    assert metadata["layout"] == LAYOUT.to_json() and metadata["codec_fingerprint"] == "toy"
    assert metadata["layout_fingerprint"] == LAYOUT.fingerprint


def test_a_finished_run_is_left_as_it_is(whole, config, capsys):
    workdir, _ = whole
    before = (workdir / "metrics.jsonl").read_bytes()
    hook = Watcher()
    assert train(config(), workdir, hooks=[hook], profile_steps=(2, 3)) == DONE
    assert hook.steps == [] and (workdir / "metrics.jsonl").read_bytes() == before
    message = "no profile of steps 2 to 3: the run is done and has 6 steps"
    assert message in capsys.readouterr().err and not (workdir / "profile").exists()


def test_programs_are_kept_in_the_folder_that_soda_cache_names(
    whole, config, tmp_path, monkeypatch
):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("SODA_CACHE", str(tmp_path / "programs"))
    try:
        assert train(config(), whole[0]) == DONE
        assert jax.config.jax_compilation_cache_dir == os.environ["SODA_CACHE"]
        monkeypatch.delenv("SODA_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        programs.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "soda_jax" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_invariant_7_a_killed_run_repeats_the_uninterrupted_one_bit_for_bit(
    whole, config, tmp_path, capsys
):
    uninterrupted, _ = whole
    # Checkpoints at 2 and 4; killed in step 4 before its save, when the row of step 3 is written.
    hooks = [Watcher(every=4), Watcher(at=4, action=kill)]
    with pytest.raises(KilledError):
        train(config(), tmp_path, hooks=hooks)
    assert CheckpointReader(tmp_path / "checkpoints").steps() == [2]
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.')  # cut short by the kill
    # A trace that starts before the resumed step is skipped and does not end the run.
    assert train(config(), tmp_path, hooks=[Watcher(every=4)], profile_steps=(1, 4)) == DONE
    message = "no profile of steps 1 to 4: the run continues at step 3 and has 6 steps"
    assert message in capsys.readouterr().err and not (tmp_path / "profile").exists()
    assert_same_run(tmp_path, uninterrupted)


def test_invariant_8_sigterm_saves_the_step_and_the_resumed_run_repeats_the_rest(
    whole, config, tmp_path
):
    uninterrupted, _ = whole
    before = signal.getsignal(signal.SIGTERM)
    hooks = [Watcher(every=4), Watcher(every=3, at=3, action=terminate)]
    assert train(config(), tmp_path, hooks=hooks[1:]) == PREEMPTED == 75
    assert signal.getsignal(signal.SIGTERM) is before
    reader = CheckpointReader(tmp_path / "checkpoints")
    assert reader.steps() == [2, 3] and reader.choose().step == 3
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3]
    assert train(config(), tmp_path, hooks=hooks[:1]) == DONE
    assert_same_run(tmp_path, uninterrupted)


def test_invariant_3_a_resume_with_another_batch_size_continues_with_the_next_windows(
    config, tmp_path, monkeypatch
):
    seen, place = [], loop.place_batch

    def watched(batch, *rest):
        seen.append(batch["tokens"])
        return place(batch, *rest)

    monkeypatch.setattr(loop, "place_batch", watched)
    assert train(config(), tmp_path, hooks=[Watcher(at=2, action=terminate)]) == PREEMPTED
    larger = config(batch_size=16, steps=4)
    assert train(larger, tmp_path, profile_steps=(4, 99)) == DONE
    assert [len(batch) for batch in seen] == [8, 8, 16, 16]
    expected = make_dataset(config().data.to_dict()).batch(0, range(48)).tokens
    np.testing.assert_array_equal(np.concatenate(seen), expected)
    assert CheckpointReader(tmp_path / "checkpoints").metadata(4)["windows"] == 48
    # The trace was ended with the run.
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_trace_holds_no_step_before_its_first_and_all_of_its_last(config, tmp_path, monkeypatch):
    @jax.jit
    def late(number):  # the same one, after a tenth of a second or more
        work = jax.lax.fori_loop(
            0, 50, lambda _, x: jax.numpy.tanh(x @ x), jax.numpy.ones((256, 256))
        )
        return number + 0.0 * work[0, 0]

    real, averages, seen = loop.make_program, [], []

    def delayed(*arguments, **options):
        program = real(*arguments, **options)
        step = program.step

        def run(*arguments):
            state, metrics = step(*arguments)
            averages.append(late(state["gradient_norm_average"]))
            return state | {"gradient_norm_average": averages[-1]}, metrics

        program.step = run
        return program

    def note(*_):
        written = [row["step"] for row in rows_of(tmp_path)]
        seen.append((len(averages), averages[-1].is_ready(), written))

    monkeypatch.setattr(loop, "make_program", delayed)
    monkeypatch.setattr(jax.profiler, "start_trace", note)
    monkeypatch.setattr(jax.profiler, "stop_trace", note)
    settings = config(checkpoint__every_steps=0)
    assert train(settings, tmp_path, profile_steps=(3, 5)) == DONE
    assert seen == [(2, True, [1, 2]), (5, True, [1, 2, 3, 4])]
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("action", "after"), [(terminate, PREEMPTED), (kill, KilledError)])
def test_a_trace_is_ended_with_a_run_that_stops_inside_it(config, tmp_path, capsys, action, after):
    hooks = [Watcher(at=2, action=action)]
    if after is KilledError:
        with pytest.raises(KilledError):
            train(config(), tmp_path, hooks=hooks, profile_steps=(2, 5))
    else:
        assert train(config(), tmp_path, hooks=hooks, profile_steps=(2, 5)) == after
    assert "profile incomplete: the run stopped before the end of step 5" in capsys.readouterr().err
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    # The profiler is free again: there is one in a process.
    jax.profiler.start_trace(str(tmp_path / "another"))
    jax.profiler.stop_trace()


def test_a_trace_of_steps_that_the_run_does_not_have_is_named(config, tmp_path, capsys):
    assert train(config(steps=1), tmp_path, profile_steps=(2, 3)) == DONE
    message = "no profile of steps 2 to 3: the run continues at step 1 and has 1 steps"
    assert message in capsys.readouterr().err and not (tmp_path / "profile").exists()


def test_invariant_8_updates_that_are_not_finite_are_counted_and_stop_the_run(config, tmp_path):
    broken = config(
        optimizer__peak_lr=1e35, optimizer__warmup_fraction=0.0, safety__max_skipped_in_a_row=3
    )
    with pytest.raises(UserError) as error:
        train(broken, tmp_path)
    assert "step 4: 3 updates in a row were skipped" in str(error.value)
    assert "\n" not in str(error.value) and "optimizer.peak_lr" in str(error.value)
    rows = rows_of(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 1, 2, 3]  # the last one too, it says why
    assert rows[0]["gradient_norm"] > 0 and rows[1]["gradient_norm"] is None
    # The parameters of the last good step are those of the checkpoint, and the count goes on.
    with pytest.raises(UserError, match="step 4: 3 updates"):
        train(broken, tmp_path)
    assert [row["skipped"] for row in rows_of(tmp_path)] == [0, 1, 2, 3]


def test_a_run_that_fails_between_two_steps_has_written_the_numbers_of_the_first(
    config, tmp_path, monkeypatch
):
    real, read = loop.Loader.__next__, []

    def failing(loader):
        read.append(1)
        if len(read) == 4:
            raise UserError("the disk is gone")
        return real(loader)

    monkeypatch.setattr(loop.Loader, "__next__", failing)
    with pytest.raises(UserError, match="the disk is gone"):
        train(config(checkpoint__every_steps=100), tmp_path)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3]


def make_program(settings):
    config = run_config(settings)
    data = open_data(config.data, FreshStart(), False)
    return programs.make_program(config, data.layout, len(data.source_names))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gradient_accumulation": 3},
            "batch_size = 8 is not a multiple of gradient_accumulation = 3",
        ),
        ({"gradient_accumulation": 0}, "gradient_accumulation = 0 must be an integer, at least 1"),
        ({"batch_size": 12}, "= 12 windows cannot be split over dcn x data x fsdp = 8 devices"),
        (
            {"gradient_accumulation": 2},
            "= 4 windows cannot be split over dcn x data x fsdp = 8 devices",
        ),
        (
            {"mesh__data": 1, "mesh__fsdp": 1, "mesh__sequence": 8, "data__sequence_length": 36},
            "data.sequence_length 36 is not a multiple of mesh.sequence = 8",
        ),
        ({"mesh__data": 3}, "does not multiply to 8 devices"),
        (
            {"model__num_heads": 3},
            "model.num_heads = 3 is not a multiple of model.num_kv_heads = 2",
        ),
        ({"optimizer__schedule": "step"}, "optimizer.schedule = 'step' must be one of wsd, cosine"),
    ],
)
def test_settings_that_do_not_fit_are_named_before_anything_is_compiled(config, change, message):
    settings = config(**change)
    with pytest.raises(UserError) as error:
        make_program(settings)
    assert message in str(error.value)


def test_the_state_is_sharded_as_its_parameters(config, datasets):
    settings = config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    program = make_program(settings)
    by_name = {}

    def note(path, leaf):
        names = [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path]
        by_name[".".join(names)] = leaf.sharding

    jax.tree_util.tree_map_with_path(note, program.abstract)
    made = mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    gate = rules.sharding(made, ("layers", "embed", "mlp"), (2, 16, 32))
    moments = [s for name, s in by_name.items() if name.endswith("layers.gate")]
    assert len(moments) == 3 and all(s.is_equivalent_to(gate, 3) for s in moments)
    assert not gate.is_fully_replicated and by_name["step"].is_fully_replicated


def test_a_step_overwrites_the_moments_where_they_lie(config):
    program = make_program(config(mesh__data=8, mesh__fsdp=1))
    batch = {
        name: jax.ShapeDtypeStruct(
            array.shape, array.dtype, sharding=rules.batch_sharding(program.mesh, array.shape)
        )
        for name, array in make_batch(8, 32).items()
    }
    module = parse_module(program.step.trace(program.abstract, batch).lower().compile().as_text())
    entry = module.computations[module.entry]
    given = {name for name, line in entry.items() if line.opcode == "parameter"}
    assert len(given) > 50  # parameters, two moments of each, the batch
    copied = [line.operands[0] for line in entry.values() if line.opcode == "copy"]
    assert not given & set(copied)


def test_metrics_may_be_written_seldom_or_not_at_all_but_for_the_last_step(whole, config, tmp_path):
    for every, expected in ((4, [4, 6]), (0, [6])):
        workdir = tmp_path / str(every)
        shutil.copytree(whole[0] / "checkpoints" / "2", workdir / "checkpoints" / "2")
        assert train(config(log__every_steps=every, checkpoint__every_steps=0), workdir) == DONE
        assert [row["step"] for row in rows_of(workdir)] == expected
    assert isinstance(config(), ConfigDict)


@pytest.mark.parametrize(
    "change", [{"model__num_heads": 3}, {"data__sources__speech__path": "/nowhere"}]
)
def test_a_run_that_cannot_start_leaves_no_files(config, tmp_path, change):
    with pytest.raises(UserError):
        train(config(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()
