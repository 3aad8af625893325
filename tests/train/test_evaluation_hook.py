"""Evaluators that run while a run trains."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from process_toys import environment_of_two
from run_toys import CLOCKS, Watcher, rows_of, stored_state, terminate
from toys import run_two

from soda_jax import cli
from soda_jax.data.format.manifest import Manifest
from soda_jax.data.format.shards import ShardWriter
from soda_jax.data.format.splitting import split_document
from soda_jax.errors import UserError
from soda_jax.evaluate.evaluators import EvaluationOptions, evaluate, evaluator
from soda_jax.evaluate.hook import EvaluationHook, metrics
from soda_jax.file_sums import FRONT_END, folder_sums
from soda_jax.generate import speech_model
from soda_jax.registry import EVALUATORS, RECOGNIZERS
from soda_jax.schema import run_config
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import ByteTokenizer, make_layout
from soda_jax.train import loop
from soda_jax.train.loop import DONE, PREEMPTED, train

SIZES = (12, 6, 9)


@pytest.fixture
def steps():
    """Registers the evaluator `noted`, which notes its steps; the value is this list."""
    noted = []

    @evaluator("noted")
    def score(context):
        noted.append(context.model.step)
        total = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(context.model.params))
        return {"utterances": 3, "seed": 5, "total": total, "examples": [1.0], "name": "x",
                "parts": {"first": 1, "flag": True}}  # fmt: skip

    yield noted
    EVALUATORS.remove("noted")


def with_tasks(config, tasks, every=2, **changes):
    return run_config(config(evaluate__tasks=tasks, evaluate__tasks_every_steps=every, **changes))


def with_sources(config, name):
    config = run_config(config)
    data = dataclasses.replace(config.data, sources={name: config.data.sources[name]})
    return dataclasses.replace(config, data=data)


def run(config, workdir, *hooks):
    return train(config, workdir, hooks=[EvaluationHook(config, workdir), *hooks])


def without_evaluation(rows):
    return [
        {k: v for k, v in row.items() if k not in CLOCKS and not k.startswith("evaluation/")}
        for row in rows
    ]


def test_training_does_not_change_and_the_numbers_are_those_of_its_checkpoints(
    config, tmp_path, whole, steps
):
    asked = with_tasks(config, "nll,noted", every=4, evaluate__limit=8)
    assert run(asked, tmp_path, Watcher(every=4)) == DONE
    assert steps == [4, 6]  # and after the last step
    (found, _), (wanted, _) = (stored_state(folder, 6) for folder in (tmp_path, whole[0]))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    rows = rows_of(tmp_path)
    assert without_evaluation(rows) == without_evaluation(rows_of(whole[0]))
    logged = {row["step"]: {k for k in row if k.startswith("evaluation/")} for row in rows}
    assert {step for step, names in logged.items() if names} == {4, 6}
    for step in (4, 6):
        options = EvaluationOptions(tasks=("nll",), limit=8, step=step)
        scores = evaluate(tmp_path, options)["nll"]
        row = rows[step - 1]
        for name, variant in scores["variants"].items():
            assert row[f"evaluation/nll/full/{name}"] == pytest.approx(
                variant["nll"]["full"], rel=1e-5
            )
        bits = scores["bits_per_second"]["text_first_audio"]["full"]
        assert row["evaluation/nll/full/bits_per_second/text_first_audio"] == pytest.approx(
            bits, rel=1e-5
        )
        assert row["evaluation/nll/items"] == scores["windows"]
        written = json.loads((tmp_path / "evaluations" / f"{step}.json").read_text())
        assert (written["step"], written["limit"]) == (step, 8)
        assert written["tasks"] == ["nll", "noted"] and written["failed"] == {}
        assert row["evaluation/seconds"] == pytest.approx(
            row["evaluation/nll/seconds"] + row["evaluation/noted/seconds"]
        )
        arrays, _ = stored_state(tmp_path, step)
        total = sum(abs(v).sum() for k, v in arrays.items() if k.startswith("params."))
        assert row["evaluation/noted/total"] == pytest.approx(total, rel=1e-5)
    assert {k: v for k, v in rows[5].items() if k.startswith("evaluation/noted/p")} == {
        "evaluation/noted/parts/first": 1
    }
    assert rows[5]["evaluation/noted/items"] == 3 and "evaluation/noted/seed" not in rows[5]


def test_a_resumed_run_scores_no_step_twice(config, tmp_path, steps):
    asked = with_tasks(config, "noted", checkpoint__every_steps=0)
    assert run(asked, tmp_path, Watcher(at=3, action=terminate)) == PREEMPTED
    assert steps == [2]
    # The run stopped after evaluating step 4, without a checkpoint of it.
    folder = tmp_path / "evaluations"
    stored = json.loads((folder / "2.json").read_text())
    (folder / "4.json").write_text(json.dumps({**stored, "step": 4}))
    assert run(asked, tmp_path) == DONE
    assert steps == [2, 6]
    assert rows_of(tmp_path)[3]["evaluation/noted/total"] == stored["noted"]["total"]


def test_a_file_of_other_settings_is_replaced(config, tmp_path, steps):
    (tmp_path / "evaluations").mkdir()
    for step, text in ((2, '{"settings": {}, "failed": {}}'), (4, "{"), (6, "[]")):
        (tmp_path / "evaluations" / f"{step}.json").write_text(text)
    assert run(with_tasks(config, "noted"), tmp_path) == DONE
    assert steps == [2, 4, 6]
    assert json.loads((tmp_path / "evaluations" / "4.json").read_text())["step"] == 4


def test_a_file_of_other_settings_of_training_is_replaced(config, tmp_path, steps):
    def stored(rate, **changes):
        asked = with_tasks(config, "noted", 6, optimizer__peak_lr=rate, **changes)
        assert run(asked, tmp_path) == DONE
        shutil.rmtree(tmp_path / "checkpoints")
        return json.loads((tmp_path / "evaluations" / "6.json").read_text())["noted"]["total"]

    first = stored(1e-3)
    assert stored(1e-3, checkpoint__keep=1, log__every_steps=3) == first and steps == [6]
    assert stored(1e-2) != first and steps == [6, 6]


@pytest.mark.parametrize("error", [UserError("no such item"), ValueError("no such item")])
def test_an_evaluator_that_fails_is_reported_and_training_continues(
    config, tmp_path, steps, monkeypatch, capsys, error
):
    def fails(context):
        raise error

    monkeypatch.setitem(EVALUATORS._functions, "fails", fails)
    assert run(with_tasks(config, "fails,noted", every=6), tmp_path) == DONE
    printed = capsys.readouterr().err
    assert "fails after step 6 failed, training continues: " in printed
    assert ("Traceback" in printed) == isinstance(error, ValueError)
    written = json.loads((tmp_path / "evaluations" / "6.json").read_text())
    assert "no such item" in written["failed"]["fails"] and written["tasks"] == ["noted"]
    row = rows_of(tmp_path)[5]
    assert "evaluation/noted/total" in row and "evaluation/fails/seconds" in row


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "nll,pesq"}, r"evaluate.tasks = 'pesq' is not a registered evaluator"),
        ({"tasks": "swuggy"}, "swuggy needs its data: set evaluate.benchmarks=swuggy=DIR"),
        ({"tasks": "hellaswag", "benchmarks": "hellaswag=nowhere"}, "nowhere is not a folder"),
        ({"tasks": "fad", "benchmarks": "fad=nowhere"}, "data of fad: nowhere is not a folder"),
        ({"tasks": "nll", "benchmarks": "swuggy=."}, "swuggy is not one of the tasks"),
        ({"tasks": "nll", "benchmarks": "swuggy"}, r"evaluate.benchmarks = 'swuggy': write TASK=DIR"),
        ({"tasks": "nll", "limit": 0}, r"evaluate.limit = 0 must be an integer, at least 1"),
        ({"tasks": "nll", "tasks_every_steps": 0}, "evaluate.tasks_every_steps = 0 must be"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_before_training(config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        EvaluationHook(
            run_config(config(**{f"evaluate__{k}": v for k, v in changes.items()})), tmp_path
        )
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_speech_is_refused_without_speech_data_and_in_several_processes(
    config, tmp_path, monkeypatch
):
    asked = with_sources(config(evaluate__tasks="asr"), "text")
    with pytest.raises(UserError, match="asr needs speech, and all sources of this run are text"):
        EvaluationHook(asked, tmp_path)
    monkeypatch.setattr("soda_jax.parallel.hosts.is_single_process", lambda: False)
    with pytest.raises(UserError, match="asr generates or encodes speech, which works in runs of"):
        EvaluationHook(with_tasks(config, "asr"), tmp_path)


def test_a_missing_package_is_refused_before_training(config, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="asr needs jiwer"):
        EvaluationHook(with_tasks(config, "asr"), tmp_path)


def test_soda_train_adds_the_hook_if_there_are_tasks(tmp_path, monkeypatch):
    hooks = []
    monkeypatch.setattr(loop, "train", lambda *_, **settings: hooks.append(settings["hooks"]) or 0)
    command = ["train", "--config=demo", f"--workdir={tmp_path}"]
    options = ["--config.evaluate.tasks=nll", "--config.evaluate.tasks_every_steps=7"]
    for chosen, every in (([], []), (options, [7])):
        assert cli.main([*command, *chosen]) == 0
        assert [h.every for h in hooks.pop() if isinstance(h, EvaluationHook)] == every
    assert cli.main([*command, "--config.evaluate.tasks=pesq"]) == 2 and not hooks


class Codec:
    name, fingerprint, codebook_sizes = "toy", "toy", SIZES
    sample_rate, frame_rate, samples_per_frame = 1000, 10.0, 100

    def decode(self, codes):
        return [np.zeros(100 * len(c), np.float32) for c in codes]


class Silence:
    name = "silence"

    def transcribe(self, audio, sample_rate):
        return "two"


def write_speech(folder):
    """A data set whose front end is the byte tokenizer and `Codec`."""
    layout, rng, splits = make_layout(ByteTokenizer(), SIZES), np.random.default_rng(0), {}
    ByteTokenizer().save(folder / "tokenizer")
    for split, count in (("train", 40), ("validation", 12)):
        writer = ShardWriter(folder / split / "shard-00000.array_record", layout)
        for number in range(count):
            text = str(rng.choice(["one", "two", "go left"]))
            codes = (rng.random((int(rng.integers(2, 6)), 3)) * SIZES).astype(np.uint16)
            utterance = Utterance(text, ByteTokenizer().encode(text), codes)
            for record in split_document(f"{split}-{number}", [utterance], layout):
                writer.write(record)
        splits[split] = (writer.close(),)
    codec = {"name": "toy", "fingerprint": "toy", "sample_rate": 1000, "frame_rate": 10.0}
    sums = folder_sums(folder, *FRONT_END)
    Manifest("speech", layout, codec, ByteTokenizer.fingerprint, splits, front_end_files=sums).save(
        folder
    )


def test_speech_is_generated_with_the_parameters_on_the_mesh(config, tmp_path, monkeypatch):
    pytest.importorskip("jiwer")
    monkeypatch.setattr(speech_model, "load_codec", lambda spec: Codec())
    monkeypatch.setattr(speech_model, "saved_codec", lambda folder: "toy:DIR")
    monkeypatch.setitem(RECOGNIZERS._functions, "whisper", lambda argument: Silence())
    write_speech(tmp_path / "speech")
    asked = config(
        evaluate__tasks="asr,tts", evaluate__limit=5, evaluate__max_seconds=0.5,
        steps=2, mesh__data=1, mesh__fsdp=2, mesh__sequence=2, mesh__tensor=2,
    )  # fmt: skip
    asked.data.sources["speech"].path = str(tmp_path / "speech")
    workdir = tmp_path / "run"
    assert run(with_sources(asked, "speech"), workdir) == DONE
    written = json.loads((workdir / "evaluations" / "2.json").read_text())
    assert written["tasks"] == ["asr", "tts"]
    options = EvaluationOptions(("asr", "tts"), limit=5, max_seconds=0.5)
    wanted = evaluate(workdir, options)
    row = rows_of(workdir)[1]
    for task in written["tasks"]:
        # On one device, from the checkpoint: the same texts, since both decode in f32.
        assert written[task] == wanted[task], task
        assert row[f"evaluation/{task}/items"] == 5
    assert row["evaluation/asr/word_error_rate"] == written["asr"]["word_error_rate"]
    assert metrics(written)["evaluation/tts/complete_share"] == written["tts"]["complete_share"]


TWO = """
import sys
from pathlib import Path
port, number, datasets, workdir = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
import jax
from train_toys import tiny_config
from soda_jax.evaluate.hook import EvaluationHook
from soda_jax.schema import run_config
from soda_jax.train.loop import train

config = run_config(tiny_config(Path(datasets), steps=2, evaluate__tasks="nll", evaluate__limit=8))
with jax.default_matmul_precision("highest"):
    train(config, workdir, hooks=[EvaluationHook(config, workdir)])
"""


def test_two_processes_score_what_one_does(config, datasets, tmp_path):
    codes, printed = run_two(
        TWO, str(datasets), str(tmp_path), environment=environment_of_two(), timeout=180
    )
    assert codes == [0, 0], printed
    wanted = evaluate(tmp_path, EvaluationOptions(("nll",), limit=8))["nll"]
    written = json.loads((tmp_path / "evaluations" / "2.json").read_text())["nll"]
    assert written["windows"] == wanted["windows"] > 0
    for name, row in wanted["variants"].items():
        assert written["variants"][name]["tokens"] == row["tokens"]
        assert written["variants"][name]["nll"]["full"] == pytest.approx(
            row["nll"]["full"], rel=1e-5
        )
    assert [path.name for path in (tmp_path / "evaluations").iterdir()] == ["2.json"]
