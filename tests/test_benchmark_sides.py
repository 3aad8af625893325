"""The harness of benchmarks/: sides are processes that take turns, and a failed one does not stop the others."""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
WORKER = """
import os, sys, time
sys.path.insert(0, {benchmarks!r})
from _worker import Step, serve

def build(order, setting):
    print("a library talks on standard output")
    with open(order["log"], "a") as log:
        log.write(f"start {{order['name']}} {{os.getpid()}}\\n")
    {body}
    def run(steps):
        with open(order["log"], "a") as log:
            log.write(f"run {{order['name']}} {{steps}}\\n")
        time.sleep(0.01 * steps)
    return Step(run, {{"parameters": 7}}, lambda: 1)

serve(build, lambda order: [{{"size": 2}}, {{"size": 1}}])
"""


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_sides")


@pytest.fixture
def train_step(sides: ModuleType) -> ModuleType:
    return importlib.import_module("train_step")


def command(sides: ModuleType, folder: Path, name: str, body: str = "pass") -> Any:
    script = folder / f"{name}.py"
    script.write_text(WORKER.format(benchmarks=str(BENCHMARKS), body=body))
    order = {"name": name, "log": str(folder / "log")}
    return sides.Command(sys.executable, str(script), order)


def log_of(folder: Path, word: str) -> list[str]:
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return [line[1] for line in lines if line[0] == word]


@pytest.mark.parametrize(("resident", "starts"), [(True, 1), (False, 3)])
def test_sides_take_turns_round_by_round(
    sides: ModuleType, tmp_path: Path, resident: bool, starts: int
) -> None:
    commands = {name: command(sides, tmp_path, name) for name in ("a", "b")}
    turns = sides.take_turns(commands, 3, 0.05, resident)
    assert log_of(tmp_path, "start").count("a") == log_of(tmp_path, "start").count("b") == starts
    for name in commands:
        assert [answer["steps"] > 1 for answer in turns[name].answers] == [True] * 3
        assert all(a["seconds"] >= 0.01 * a["steps"] for a in turns[name].answers)
    timed = [
        line.split()[1]
        for line in (tmp_path / "log").read_text().splitlines()
        if line.startswith("run") and int(line.split()[2]) > 1
    ]
    assert timed == ["a", "b", "b", "a", "a", "b"]


def test_a_side_that_hangs_is_killed_and_named(
    sides: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "START_LIMIT", 2.0)
    commands = {"good": command(sides, tmp_path, "good")}
    commands["stuck"] = command(sides, tmp_path, "stuck", "time.sleep(600)")
    turns = sides.take_turns(commands, 2, 0.01, True)
    assert turns["stuck"].missing == "no answer in 2 s" and not turns["stuck"].answers
    assert len(turns["good"].answers) == 2
    lines = (tmp_path / "log").read_text().splitlines()
    for pid in (int(line.split()[2]) for line in lines if line.startswith("start")):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("import no_such_library", "No module named 'no_such_library'"),
        ("raise ValueError('a bad shape')", "exit status 1: ValueError: a bad shape"),
        ("raise RuntimeError('RESOURCE_EXHAUSTED')", "out of memory in every setting"),
    ],
)
def test_a_side_that_cannot_run_reports_the_reason(
    sides: ModuleType, tmp_path: Path, body: str, why: str
) -> None:
    turns = sides.take_turns({"peer": command(sides, tmp_path, "peer", body)}, 2, 0.01, True)
    assert turns["peer"].missing == why


def test_an_interpreter_that_is_not_there_is_named(sides: ModuleType, tmp_path: Path) -> None:
    absent = sides.Command(str(tmp_path / "python"), "_step_ours.py", {})
    turns = sides.take_turns({"peer": absent}, 1, 0.01, True)
    assert str(tmp_path / "python") in turns["peer"].missing


def test_out_of_memory_leads_to_the_next_setting(sides: ModuleType, tmp_path: Path) -> None:
    body = "if setting['size'] == 2: raise RuntimeError('CUDA out of memory')"
    turns = sides.take_turns({"a": command(sides, tmp_path, "a", body)}, 1, 0.01, True)
    assert turns["a"].ready["setting"] == {"size": 1}


def test_sides_of_other_size_are_not_compared(sides: ModuleType, train_step: ModuleType) -> None:
    def turns_of(parameters: int) -> Any:
        ready = {"parameters": parameters, "version": "1", "device": "cpu", "setting": {}}
        answer = {"steps": 1, "seconds": 1.0, "core_seconds": 1.0, "peak_bytes": 1}
        answer |= {"peak_flops": 1e9, "peak_source": "product"}
        answer |= {"product_flops": 1e9, "product_source": "product"}
        return sides.Turns(ready, [answer])

    turns = {"ours": turns_of(1000), "near": turns_of(1009), "far": turns_of(1011)}
    table = train_step.table("d256", train_step.SMALL["d256"], turns)
    assert "| near |" in table and "| far |" not in table
    assert "far: not measured: 1,011 parameters, ours has 1,000" in table


def test_the_fraction_outside_products_follows_from_the_rate_of_one_product(
    sides: ModuleType, train_step: ModuleType
) -> None:
    shape = train_step.SMALL["d256"]
    ready = {"parameters": 1000, "version": "1", "device": "gpu", "setting": {}}
    # The products of a step take 0.6 s at the rate of one that is measured, 0.3 s at the peak.
    rates = {"peak_flops": shape.flops() / 0.3, "product_flops": shape.flops() / 0.6}
    rates |= {"peak_source": "data sheet", "product_source": "a product"}
    answer = {"steps": 2, "core_seconds": 1.0, "peak_bytes": 1}
    turns = {
        "ours": sides.Turns(ready, [answer | rates | {"seconds": 2 * 0.75}]),
        "peer": sides.Turns(ready, [answer | {"seconds": 2 * 1.2}]),
    }
    lines = train_step.table("d256", shape, turns).splitlines()
    head, *_ = (line for line in lines if line.startswith("| side"))
    column = head.split(" | ").index("outside products")
    cells = {line.split(" | ")[0]: line.split(" | ")[column] for line in lines if "GB |" in line}
    assert cells == {"| ours": "20%", "| peer": "50%"}


def test_parameters_of_named_shapes_are_those_of_the_suite(train_step: ModuleType) -> None:
    from soda_jax.configs import soda_600m

    shape = train_step.shape_of("600m", None)
    config = soda_600m.get_config()
    assert (shape.num_layers, shape.num_kv_heads) == (
        config.model.num_layers,
        config.model.num_kv_heads,
    )
    assert shape.sequence == config.data.sequence_length
    assert shape.vocabulary == 144_644  # SODA, table of the vocabulary


def test_the_table_of_one_side_names_the_missing_peers(
    sides: ModuleType, train_step: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SODA_CACHE", str(tmp_path))
    shape = train_step.Shape(1, 32, 64, 2, 1, 16, 128, 8, 2, 16)
    order = {"platform": "cpu", "shape": json.loads(json.dumps(vars(shape)))}
    absent = sides.Command(str(tmp_path / "python"), "_step_transformers.py", order)
    ours = sides.Command(sys.executable, "_step_ours.py", order)
    began = time.monotonic()
    turns = sides.take_turns({"ours": ours, "transformers": absent}, 2, 0.05, True)
    table = train_step.table("tiny", shape, turns)
    assert turns["ours"].missing == ""
    # Per layer: attention 32·16·(2·2 + 2·1), MLP 3·32·64, norms 2·32 + 2·16; final norm; two tables.
    parameters = 32 * 16 * 6 + 3 * 32 * 64 + 2 * 32 + 2 * 16 + 32 + 2 * 128 * 32
    assert f"{parameters:,} parameters" in table
    assert "| ours |" in table and "transformers: not measured" in table
    seconds = sum(answer["seconds"] for answer in turns["ours"].answers)
    assert 0 < seconds < time.monotonic() - began


def test_instructions_of_a_profile_have_their_kind(train_step: ModuleType) -> None:
    import jax
    import jax.numpy as jnp

    from soda_jax.plan.hlo import parse_module

    step_profile = importlib.import_module("step_profile")

    def loss(weight, x):
        return jnp.sum(jnp.tanh(x @ weight))

    def step(weight, x):
        return weight - 0.1 * jax.grad(loss)(weight, x)

    size = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    module = parse_module(jax.jit(step).lower(size, size).compile().as_text())
    lines = module.computations[module.entry].values()
    work = [line for line in lines if line.opcode in ("fusion", "dot", "custom-call")]
    kinds = [step_profile.kind_of(line, module) for line in work]
    assert kinds.count(step_profile.HEAD) >= 2  # x W and its gradient: products outside any scan
    assert {step_profile.BETWEEN, step_profile.UPDATE} & set(kinds)
    assert step_profile.LAYERS not in kinds and step_profile.SCORES not in kinds
