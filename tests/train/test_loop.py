"""Whole runs: resuming, hooks, metrics, the data that a run keeps."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from train_toys import CODEC, LAYOUT, leaves, write_generation

from soda_jax.checkpoints import CheckpointReader
from soda_jax.data.dataset import make_dataset
from soda_jax.data.manifest import Manifest
from soda_jax.errors import UserError
from soda_jax.parallel import mesh, rules
from soda_jax.train import loop
from soda_jax.train import run as parts
from soda_jax.train.loop import DONE, PREEMPTED, train
from soda_jax.train.metrics import read_metrics
from soda_jax.train.wandb import WandbHook

# What two runs with the same numbers may differ in.
CLOCKS = {
    "seconds", "tokens_per_second", "audio_seconds_per_second", "flops_per_second", "mfu",
    "data_wait_seconds",
}  # fmt: skip


class Watcher:
    """A hook that notes the steps it is called at, and does something at one of them."""

    def __init__(self, every=1, at=0, action=None):
        self.every, self.steps, self._at, self._action = every, [], at, action
        self.views = []

    def __call__(self, run):
        self.steps.append(run.step)
        self.views.append((run.workdir, dict(run.metrics), run.dataset.source_names))
        if run.step == self._at:
            self._action()
        return {} if self._action else {"watched/twice": 2.0 * run.step}


class KilledError(Exception):
    pass


def kill():
    raise KilledError


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def rows_of(workdir):
    return read_metrics(workdir / "metrics.jsonl")


def without_clocks(rows):
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def stored_state(workdir, step):
    """All arrays of a checkpoint, by name, as numpy."""
    import orbax.checkpoint as ocp

    reader = CheckpointReader(workdir / "checkpoints")
    found = {}
    for item in ("params", "training"):
        tree = ocp.PyTreeCheckpointer().restore(reader.path(step) / item)
        found |= {f"{item}.{name}": value for name, value in leaves(tree).items()}
    return found, reader.metadata(step)


def assert_same_run(workdir, other, step=6):
    (found, metadata), (wanted, metadata_wanted) = (
        stored_state(folder, step) for folder in (workdir, other)
    )
    assert found.keys() == wanted.keys() and len(found) > 30
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert metadata == metadata_wanted
    assert without_clocks(rows_of(workdir)) == without_clocks(rows_of(other))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, datasets):
    """The workdir of an uninterrupted run of six steps, and its hook."""
    from train_toys import tiny_config

    workdir = tmp_path_factory.mktemp("whole")
    hook = Watcher(every=4)
    assert train(tiny_config(datasets), workdir, hooks=[hook]) == DONE
    return workdir, hook


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
    assert config["model"]["width"] == 16 and config["steps"] == 6
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
    told = "no profile of steps 2 to 3: the run is done and has 6 steps"
    assert told in capsys.readouterr().err and not (workdir / "profile").exists()


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
        parts.use_compilation_cache()
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
    # A trace whose first step lies before the resume is not taken, and ends nothing.
    assert train(config(), tmp_path, hooks=[Watcher(every=4)], profile_steps=(1, 4)) == DONE
    told = "no profile of steps 1 to 4: the run goes on at step 3 and has 6 steps"
    assert told in capsys.readouterr().err and not (tmp_path / "profile").exists()
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


def test_invariant_3_another_batch_size_after_a_resume_goes_on_with_the_next_windows(
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


@pytest.mark.parametrize(("action", "after"), [(terminate, PREEMPTED), (kill, KilledError)])
def test_a_trace_is_ended_with_a_run_that_stops_inside_it(config, tmp_path, capsys, action, after):
    hooks = [Watcher(at=2, action=action)]
    if after is KilledError:
        with pytest.raises(KilledError):
            train(config(), tmp_path, hooks=hooks, profile_steps=(2, 5))
    else:
        assert train(config(), tmp_path, hooks=hooks, profile_steps=(2, 5)) == after
    assert "the profile ends before step 5: the run stops" in capsys.readouterr().err
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    # The profiler is free again: there is one in a process.
    jax.profiler.start_trace(str(tmp_path / "another"))
    jax.profiler.stop_trace()


def test_a_trace_of_steps_that_the_run_does_not_have_is_named(config, tmp_path, capsys):
    assert train(config(steps=1), tmp_path, profile_steps=(2, 3)) == DONE
    told = "no profile of steps 2 to 3: the run goes on at step 1 and has 1 steps"
    assert told in capsys.readouterr().err and not (tmp_path / "profile").exists()


def test_invariant_8_updates_that_are_not_finite_are_counted_and_stop_the_run(config, tmp_path):
    broken = config(optimizer__peak=1e35, optimizer__warmup=0.0, safety__max_skipped_in_a_row=3)
    with pytest.raises(UserError) as error:
        train(broken, tmp_path)
    assert "step 4: 3 updates in a row were skipped" in str(error.value)
    assert "\n" not in str(error.value) and "optimizer.peak" in str(error.value)
    rows = rows_of(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 1, 2]
    assert rows[0]["gradient_norm"] > 0 and rows[1]["gradient_norm"] is None
    # The parameters of the last good step are those of the checkpoint, and the count goes on.
    with pytest.raises(UserError, match="step 4: 3 updates"):
        train(broken, tmp_path)
    assert [row["skipped"] for row in rows_of(tmp_path)] == [0, 1, 2]


def test_invariant_1_a_running_job_keeps_its_data_when_some_is_appended(config, datasets, tmp_path):
    for name in ("speech", "text"):
        shutil.copytree(datasets / name, tmp_path / name)
    settings = config(
        data__sources__speech__path=str(tmp_path / "speech"),
        data__sources__text__path=str(tmp_path / "text"),
    )
    before = parts.open_data(settings, None, False)
    metadata = parts.run_metadata(settings, before, 0)
    write_generation(tmp_path / "speech", "speech", 7, 30)
    resumed = parts.open_data(settings, metadata, False)
    assert resumed.digest == before.digest
    assert resumed.config["sources"]["speech"]["generation"] == 0
    np.testing.assert_array_equal(
        resumed.batch(0, range(20)).tokens, before.batch(0, range(20)).tokens
    )
    fresh = parts.open_data(settings, None, False)
    assert fresh.digest != before.digest and fresh.sources[0].windows > before.sources[0].windows
    # A source that names no generation at all follows the checkpoint as well.
    with settings.unlocked():
        del settings.data.sources.speech.generation
    assert parts.open_data(settings, metadata, False).digest == before.digest


@pytest.mark.parametrize(
    "change",
    [
        {"data__sources__speech__weight": 2.0},
        {"data__seed": 1},
        {"data__sequence_length": 16},
        {"data__sources__speech__order": "text_first"},
    ],
)
def test_other_data_than_the_checkpoints_is_refused_unless_allowed(config, change):
    metadata = parts.run_metadata(config(), parts.open_data(config(), None, False), 0)
    with pytest.raises(UserError, match=r"the data is not that of the checkpoint .*--allow_data_c"):
        parts.open_data(config(**change), metadata, False)
    assert parts.open_data(config(**change), metadata, True).digest != metadata["data_digest"]


def another_front_end(datasets, folder, **fields):
    """A copy of the data sets whose manifests say something else; returns changes for a config."""
    changes = {}
    for name in ("speech", "text"):
        shutil.copytree(datasets / name, folder / name)
        manifest = Manifest.load(folder / name)
        shutil.rmtree(folder / name / "manifests")
        mine = {key: value for key, value in fields.items() if key != "codec" or manifest.codec}
        dataclasses.replace(manifest, **mine).save(folder / name)
        changes[f"data__sources__{name}__path"] = str(folder / name)
    return changes


@pytest.mark.parametrize(
    ("what", "fields", "ours", "theirs", "mend"),
    [
        ("codec", {"codec": {**CODEC, "fingerprint": "new"}}, "new", "toy", "tokenize the data ag"),
        ("tokenizer", {"tokenizer_fingerprint": "new"}, "new", "toy", "with soda retext"),
        (
            "vocabulary layout",
            {"layout": dataclasses.replace(LAYOUT, text_size=48)},
            dataclasses.replace(LAYOUT, text_size=48).fingerprint,
            LAYOUT.fingerprint,
            "tokenize the data again",
        ),
    ],
)
def test_data_of_another_front_end_is_refused_even_if_other_data_is_allowed(
    whole, config, datasets, tmp_path, what, fields, ours, theirs, mend
):
    workdir, _ = whole
    other = config(**another_front_end(datasets, tmp_path, **fields), steps=9)
    for allowed in (True, False):
        with pytest.raises(UserError) as error:
            train(other, workdir, allow_data_change=allowed)
        told = str(error.value)
        assert f"the {what} has fingerprint {ours}," in told and "\n" not in told
        assert f"{workdir / 'checkpoints'} was trained with {theirs};" in told and mend in told
        # A text data set has no codec to be blamed for.
        assert str(tmp_path / "speech") in told
        assert (str(tmp_path / "text") in told) == (what != "codec")
    assert len(rows_of(workdir)) == 6


def test_a_model_of_text_may_go_on_to_speech_and_back_and_keeps_its_codec(config):
    def text_alone():
        settings = config()
        with settings.unlocked():
            del settings.data.sources.speech
        return settings

    text = parts.open_data(text_alone(), None, False)
    text_metadata = parts.run_metadata(text_alone(), text, 0)
    assert text_metadata["codec_fingerprint"] is None
    both = parts.open_data(config(), text_metadata, True)
    metadata = parts.run_metadata(config(), both, 0, text_metadata)
    assert metadata["codec_fingerprint"] == "toy"
    again = parts.open_data(text_alone(), metadata, True)
    assert parts.run_metadata(text_alone(), again, 0, metadata)["codec_fingerprint"] == "toy"


def test_damaged_records_that_are_masked_are_counted_in_the_metrics(config, datasets, tmp_path):
    shutil.copytree(datasets / "text", tmp_path / "text")
    (tmp_path / "text" / "train" / "shard-00000.array_record").unlink()
    settings = config(
        data__sources__text__path=str(tmp_path / "text"), data__damaged="mask", steps=2
    )
    assert train(settings, tmp_path / "run") == DONE
    counts = [row["masked_records"] for row in rows_of(tmp_path / "run")]
    assert 0 < counts[0] <= counts[1] <= 60 and "loss/text/text" not in rows_of(tmp_path / "run")[0]


def test_records_to_mask_can_be_named_on_the_command_line(config, tmp_path):
    (tmp_path / "m.txt").write_text("shard-00000.array_record 3\n")
    settings = config()
    settings.update_from_flattened_dict({"data.sources.speech.masked": str(tmp_path / "m.txt")})
    masked = parts.open_data(settings, None, False)
    assert masked.summary()["speech"]["masked_records"] == 1
    assert masked.digest != parts.open_data(config(), None, False).digest


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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"accumulate": 3}, "batch_size 8 is not a multiple of accumulate 3"),
        ({"accumulate": 0}, "batch_size 8 is not a multiple of accumulate 0"),
        ({"batch_size": 12}, "= 12 windows cannot be split over data x fsdp = 8 devices"),
        ({"accumulate": 2}, "= 4 windows cannot be split over data x fsdp = 8 devices"),
        (
            {"mesh__data": 1, "mesh__fsdp": 1, "mesh__sequence": 8, "data__sequence_length": 36},
            "data.sequence_length 36 is not a multiple of mesh.sequence = 8",
        ),
        ({"mesh__data": 3}, "does not make 8 devices"),
        ({"model__heads": 3}, "model.heads = 3 is not a multiple of model.kv_heads = 2"),
        ({"optimizer__schedule": "step"}, "optimizer.schedule = 'step' is unknown"),
    ],
)
def test_settings_that_do_not_fit_are_named_before_anything_is_compiled(config, change, told):
    settings = config(**change)
    with pytest.raises(UserError) as error:
        parts.make_program(settings, parts.open_data(settings, None, False))
    assert told in str(error.value)


def test_the_state_is_sharded_as_its_parameters(config, datasets):
    settings = config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    program = parts.make_program(settings, parts.open_data(settings, None, False))
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


def test_metrics_may_be_written_seldom_or_not_at_all_but_for_the_last_step(whole, config, tmp_path):
    for every, expected in ((4, [4, 6]), (0, [6])):
        workdir = tmp_path / str(every)
        shutil.copytree(whole[0] / "checkpoints" / "2", workdir / "checkpoints" / "2")
        assert train(config(log__every_steps=every, checkpoint__every_steps=0), workdir) == DONE
        assert [row["step"] for row in rows_of(workdir)] == expected
    assert isinstance(config(), ConfigDict)


@pytest.mark.parametrize(
    "change", [{"model__heads": 3}, {"data__sources__speech__path": "/nowhere"}]
)
def test_a_run_that_cannot_begin_leaves_nothing_behind(config, tmp_path, change):
    with pytest.raises(UserError):
        train(config(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()
