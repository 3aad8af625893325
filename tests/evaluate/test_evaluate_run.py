"""Held-out loss of a checkpoint, from the command and from the hook of the trainer."""

import argparse
import dataclasses
import json
from types import SimpleNamespace

import benchmark_files as files
import jax
import numpy as np
import pytest

from soda_jax.checkpoints import Checkpointer
from soda_jax.commands import evaluate as command
from soda_jax.data.dataset import make_dataset
from soda_jax.data.loss_vector import loss_vector
from soda_jax.errors import UserError
from soda_jax.evaluate.evaluators import EvaluationOptions, evaluate
from soda_jax.evaluate.loss import LossHook, held_out_sums
from soda_jax.evaluate.tables import class_rows, not_below, text_report
from soda_jax.evaluate.windows import Windows, open_windows
from soda_jax.generate.checkpoint import load_decoder
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
from soda_jax.parallel.mesh import make_mesh
from soda_jax.schema import to_dict
from soda_jax.tokens.text import ByteTokenizer

MODEL = {
    "num_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "compute_dtype": "float32",
    "remat": "none",
    "rope": {"theta": 10_000.0, "factor": 1.0},
}


@pytest.fixture(scope="module")
def functions():
    # The layout of conftest: bytes with two specials, four markers, codebooks of 6, 4 and 5.
    return ModelFunctions(decoder_config(MODEL, VocabularyBlocks(262, (6, 4, 5))))


@pytest.fixture(scope="module")
def params(functions):
    return jax.jit(functions.init, static_argnums=0)(0)


@pytest.fixture
def workdir(tmp_path, params, layout, config):
    """Returns a workdir with one checkpoint."""
    assert layout.audio_base == VocabularyBlocks(262, (6, 4, 5)).first_rows
    return save_run(tmp_path / "run", params, layout, config)


def save_run(folder, params, layout, config, **model):
    """Writes a workdir with a checkpoint of step 4; `model` changes settings of the model."""
    metadata = {
        "config": {"model": {**MODEL, **model}},
        "layout": layout.to_json(),
        "codec_fingerprint": "toy",
        "tokenizer_fingerprint": ByteTokenizer.fingerprint,
        "data": to_dict(make_dataset(config).config),
    }
    with Checkpointer(folder / "checkpoints", every_steps=None) as checkpoints:
        checkpoints.maybe_save(4, {"params": params}, metadata, force=True)
    return folder


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setattr("soda_jax.train.program.use_compilation_cache", lambda: None)


def test_the_loss_is_the_mean_over_all_targets(workdir, config, functions, params):
    windows = open_windows(config)
    sums = held_out_sums(load_decoder(workdir), windows, batch_size=4)
    decoder, total, count = functions.bind(params), 0.0, 0
    for batch in windows.batches(4):
        hidden = decoder(batch["tokens"], batch["segment_ids"], batch["positions"])
        log_p = np.asarray(jax.nn.log_softmax(decoder.logits(hidden))[:, :-1])
        nll = -np.take_along_axis(log_p, batch["tokens"][:, 1:, None], axis=-1)[..., 0]
        total += float((nll * batch["loss_mask"][:, :-1]).sum())
        count += int(batch["loss_mask"].sum())
    assert sums["count"].sum() == count
    assert sums["nll"].sum() == pytest.approx(total, rel=1e-5)


def test_the_command_prints_tables_and_writes_json(workdir, capsys):
    assert run(f"--workdir={workdir}", "--tasks=loss,baselines") == 0
    printed = capsys.readouterr().out
    written = json.loads((workdir / "evaluation.json").read_text())
    assert (written["step"], written["tasks"]) == (4, ["loss", "baselines"])
    for name in ("text", "semantic", "acoustic_1", "acoustic_2", "marker", "all"):
        assert name in printed
        for vector in (written["loss"]["model"], *(written["baselines"][k] for k in ("unigram", "bigram"))):  # fmt: skip
            assert vector[f"loss/{name}"] > 0
    assert written["loss"]["model"]["loss/text/all"] > 0
    # The weights are random: no class can be below the bigram, and the table reports that.
    assert "NOT below both baselines" in printed


def test_the_loss_does_not_depend_on_the_compute_dtype_of_the_run(tmp_path, params, layout, config):
    losses = []
    for dtype in ("float32", "bfloat16"):
        folder = save_run(tmp_path / dtype, params, layout, config, compute_dtype=dtype)
        losses.append(evaluate(folder, EvaluationOptions(tasks=("loss",)))["loss"])
    assert losses[0] == losses[1]
    assert losses[0]["compute_dtype"] == "float32"


def test_baselines_have_the_normalizer_of_the_loss(workdir, capsys):
    found = {}
    for head in ("full", "legal"):
        assert run(f"--workdir={workdir}", "--tasks=loss,baselines", f"--head={head}") == 0
        assert ("over the legal ids" in capsys.readouterr().out) == (head == "legal")
        found[head] = json.loads((workdir / "evaluation.json").read_text())
        assert found[head]["loss"]["head"] == found[head]["baselines"]["head"] == head
        assert all(row.margin is not None for row in class_rows(found[head]))
    full, legal = found["full"], found["legal"]
    for kind in ("unigram", "bigram"):
        assert legal["baselines"][kind]["loss/all"] < full["baselines"][kind]["loss/all"]
    mixed = {**legal, "baselines": full["baselines"]}
    assert all(row.margin is None for row in class_rows(mixed))
    assert "the baselines have another normalizer" in text_report(mixed)


def test_the_loss_of_narrow_weights(workdir):
    scores = {
        dtype: evaluate(workdir, EvaluationOptions(tasks=("loss",), dtype=dtype))["loss"]
        for dtype in ("", "float32", "bfloat16", "int8")
    }
    assert [row["weights_dtype"] for row in scores.values()] == [
        "float32", "float32", "bfloat16", "int8",
    ]  # fmt: skip
    loss = {dtype: row["model"]["loss/all"] for dtype, row in scores.items()}
    assert loss[""] == loss["float32"]
    assert 0 < abs(loss["bfloat16"] - loss[""]) < 0.01 and 0 < abs(loss["int8"] - loss[""]) < 0.05
    with pytest.raises(UserError, match="dtype 'int4' is unknown"):
        EvaluationOptions(dtype="int4")


@pytest.mark.parametrize("task", ["loss", "nll"])
def test_a_loss_that_is_not_finite_is_an_error_that_names_the_checkpoint(
    workdir, params, task, monkeypatch
):
    broken = jax.tree.map(lambda array: array * np.nan, params)
    decoder = dataclasses.replace(load_decoder(workdir), params=broken)
    monkeypatch.setattr("soda_jax.evaluate.evaluators.load_decoder", lambda *_: decoder)
    with pytest.raises(UserError, match=rf"^{task}: the loss of source \w+ is not finite") as error:
        run(f"--workdir={workdir}", f"--tasks={task}")
    assert f"step 4 in {workdir} are damaged" in str(error.value) and "\n" not in str(error.value)
    assert not (workdir / "evaluation.json").exists()


def test_moved_data_is_read_from_the_given_folder(workdir, tmp_path, capsys):
    (tmp_path / "speech").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="--source=speech=DIR"):
        run(f"--workdir={workdir}", "--tasks=loss")
    moved = f"--source=speech={tmp_path / 'elsewhere'}"
    assert run(f"--workdir={workdir}", "--tasks=loss", moved) == 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--tasks=loss,pesq", "pesq"),
        ("--tasks=", "baselines"),
        ("--limit=-1", "limit"),
        ("--source=speech", "NAME=DIR"),
        ("--step=9", "9"),
        ("--max_seconds=0", "max_seconds"),
    ],
)
def test_bad_options_are_refused(workdir, argument, message):
    with pytest.raises(UserError, match=message):
        run(f"--workdir={workdir}", "--tasks=loss", argument)
    assert not (workdir / "evaluation.json").exists()


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_scored(
    workdir, tmp_path, monkeypatch
):
    monkeypatch.setattr("soda_jax.evaluate.evaluators.evaluate", None)
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "a.json", tmp_path):
        with pytest.raises(UserError, match=f"--output={output} cannot be written"):
            run(f"--workdir={workdir}", "--tasks=loss", f"--output={output}")
    (workdir / "evaluation.json").mkdir()
    with pytest.raises(UserError, match=r"evaluation\.json cannot be written \(it is a folder\)"):
        run(f"--workdir={workdir}", "--tasks=loss")


def test_scores_of_other_tasks_are_kept(workdir, capsys):
    assert run(f"--workdir={workdir}", "--tasks=loss,baselines") == 0
    assert run(f"--workdir={workdir}", "--tasks=baselines,loss") == 0  # the same tasks
    assert not list(workdir.glob("evaluation-*"))
    before = (workdir / "evaluation.json").read_bytes()
    for number in (1, 2):
        assert run(f"--workdir={workdir}", "--tasks=loss") == 0
        assert (workdir / "evaluation-1.json").read_bytes() == before
        assert ("evaluation-1.json" in capsys.readouterr().err) == (number == 1)
    assert json.loads((workdir / "evaluation.json").read_text())["tasks"] == ["loss"]
    assert not (workdir / "evaluation-2.json").exists()


def test_a_missing_package_is_an_error_before_anything_is_scored(workdir, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"asr needs jiwer.*soda-jax\[eval\]"):
        evaluate(workdir, EvaluationOptions(tasks=("loss", "asr")))


def test_the_hook_logs_the_loss_of_the_evaluation(workdir, config, functions, params, monkeypatch):
    dataset = make_dataset(config)
    view = SimpleNamespace(
        config=SimpleNamespace(batch_size=8, loss_chunk=64),
        mesh=make_mesh({"data": 4}, jax.devices()[:4]),
        model=functions,
        params=params,
        dataset=dataset,
    )
    hook = LossHook(every=1, batches=0)
    with monkeypatch.context() as patch:  # a temporary error, after which a study repeats the run
        patch.setattr(Windows, "batches", lambda *_, **__: iter(lambda: 1 / 0, 0))
        with pytest.raises(ZeroDivisionError):
            hook(view)
    logged = hook(view)
    assert logged == hook(view)
    wanted = evaluate(workdir, EvaluationOptions(tasks=("loss",)))["loss"]["model"]
    assert logged.keys() == {f"validation/{name}" for name in wanted}
    for name, value in wanted.items():
        assert logged[f"validation/{name}"] == pytest.approx(value, rel=1e-5)


def test_the_hook_reports_once_that_there_is_no_validation_data(
    config, functions, write, tmp_path, capsys
):
    write(tmp_path / "none", validation=0)
    only = {**config, "sources": {"speech": {"path": str(tmp_path / "none")}}}
    view = SimpleNamespace(
        config=SimpleNamespace(batch_size=8, loss_chunk=64),
        mesh=make_mesh({"data": 1}, jax.devices()[:1]),
        model=functions,
        dataset=make_dataset(only),
    )
    hook = LossHook(every=1, batches=0)
    assert hook(view) == hook(view) == {}
    assert capsys.readouterr().err.count("no held-out loss") == 1


def test_a_class_that_is_not_below_a_baseline_is_reported(layout):
    names = layout.class_names
    model, weak, strong = (
        loss_vector(np.full((1, 5), nll), np.ones((1, 5)), names, ("s",)) for nll in (2.0, 4.0, 3.0)
    )
    strong["loss/acoustic_2"] = 1.5
    loss = {"classes": list(names), "tokens": 5, "windows": 1, "left_out": [], "model": model}
    evaluation = {"step": 1, "loss": loss, "baselines": {"unigram": weak, "bigram": strong}}
    rows = class_rows(evaluation)
    assert not_below(rows) == ["acoustic_2"]
    assert {row.name: row.margin for row in rows} == {
        **dict.fromkeys((*names, "all"), 1.0),
        "acoustic_2": -0.5,
    }
    assert "NOT below both baselines: acoustic_2" in text_report(evaluation)


@pytest.mark.parametrize("mesh", ["data=8", "data=4,tensor=2"])
def test_a_whole_evaluation_on_a_mesh_gives_the_scores_of_one_device(workdir, tmp_path, mesh):
    ByteTokenizer().save(workdir / "tokenizer")
    files.write_zerospeech(tmp_path / "zr")
    found = {}
    for name, options in (("one", []), ("mesh", [f"--mesh={mesh}"])):
        output = tmp_path / f"{name}.json"
        data = [f"--data=twuggy={tmp_path / 'zr'}", f"--data=tblimp={tmp_path / 'zr'}"]
        tasks = "--tasks=loss,twuggy,tblimp"
        assert run(f"--workdir={workdir}", tasks, *data, f"--output={output}", *options) == 0
        found[name] = json.loads(output.read_text())
    one, many = found["one"], found["mesh"]
    assert many["loss"]["model"] == pytest.approx(one["loss"]["model"], abs=1e-5)
    for task in ("twuggy", "tblimp"):
        assert many[task]["scored"] == one[task]["scored"] > 0
        assert many[task]["accuracy"] == one[task]["accuracy"]
