"""`soda plan` without the TPU's compiler: names, arithmetic, search, JSON."""

import argparse
import json
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from soda_jax.commands import plan as command
from soda_jax.commands._config import load_config
from soda_jax.errors import UserError
from soda_jax.plan import run as plan
from soda_jax.plan.compiled import DoesNotFitError, _told, compile_step
from soda_jax.plan.topologies import parse_topology
from soda_jax.tokens.vocabulary import VocabularyLayout


@pytest.mark.parametrize(
    ("text", "chips", "memory"),
    [("v5p:4x4x8", 128, 95 * 2**30), ("v5e:4x8", 32, 16 * 2**30), ("H100:8", 8, 80e9)],
)
def test_a_topology_is_chip_and_shape(text, chips, memory):
    found = parse_topology(text)
    assert (found.chips, found.chip.memory) == (chips, memory)
    assert parse_topology(text, 2).chips == 2 * chips


@pytest.mark.parametrize(
    ("text", "slices", "told"),
    [
        ("v9:2x2", 1, "--topology=v9:2x2 is unknown: CHIP:SHAPE with a chip of v4, v5e, v5p, v6e, h100, h200"),
        ("v5p", 1, "as in v4:2x2x4"),
        ("v5p:0x2x2", 1, "is unknown"),
        ("v5p:4x4", 1, "the shape of v5p is AxBxC"),
        ("h100:2x4", 1, "the shape of h100 is a number of GPUs"),
        ("h100:12", 1, "GPUs come in nodes of 8: up to 8, or a multiple"),
        ("v5e:4x4", 0, "--slices=0"),
    ],
)  # fmt: skip
def test_a_topology_that_is_none_is_refused_with_the_valid_names(text, slices, told):
    with pytest.raises(UserError, match=told):
        parse_topology(text, slices)


def planner(*overrides, topology="h100:8", config="soda_135m", price=None):
    found = load_config(config, [f"--config.{one}" for one in overrides])
    return plan.Planner(found, VocabularyLayout.soda(), parse_topology(topology), price, True)


def test_an_estimate_counts_the_state_exactly_and_the_rest_by_its_arrays():
    one = planner(price=2.0)
    outcome = one.make(one.config)
    assert (outcome.mesh["data"], outcome.mesh["fsdp"]) == (2, 4)
    blocks = 2 * (128_512 - 128_260) * 512  # padding rows are held, not counted
    assert outcome.memory.parameters == pytest.approx(4 * outcome.decoder.parameters / 4)
    assert outcome.memory.optimizer == 2 * outcome.memory.parameters
    assert blocks / outcome.decoder.parameters < 2e-3
    value = outcome.to_json()
    assert value["tokens"] == 238_419 * 512 * 4096
    assert value["cost"] == pytest.approx(value["chip_hours"] * 2.0)
    assert value["roofline_seconds"] == max(value["bounds_seconds"].values())
    assert 0 < value["mfu_bound"] < 1 and value["fits"]
    # Full rematerialisation runs the forward pass of the layers twice.
    none = planner("model.remat=none").make(load_config("soda_135m", ["--config.model.remat=none"]))
    assert none.flops < outcome.flops < 4 / 3 * none.flops
    assert none.memory.temporaries > 2 * outcome.memory.temporaries


def test_traffic_of_gpus_beyond_their_node_is_the_networks():
    inside = planner("mesh.fsdp=8").make(load_config("soda_4b", ["--config.mesh.fsdp=8"]))
    assert "links" in inside.bounds() and "network" not in inside.bounds()
    config = load_config("soda_4b", ["--config.mesh.fsdp=64"])
    across = planner(topology="h100:64").make(config)
    assert "network" in across.bounds() and "links" not in across.bounds()


def test_dcn_of_gpus_is_their_nodes():
    config = load_config("soda_1_7b", ["--config.mesh.dcn=-1"])
    outcome = planner(topology="h100:64").make(config)
    assert (outcome.mesh["dcn"], outcome.mesh["data"] * outcome.mesh["fsdp"]) == (8, 8)
    # Gradients alone leave the node; what fsdp gathers stays on NVLink.
    assert {"network", "links"} <= set(outcome.bounds())
    assert planner(topology="h100:8").make(config).mesh["dcn"] == 1
    assert parse_topology("h100:4", 2).domains == 2
    halves = load_config("soda_135m", ["--config.mesh.data=2", "--config.mesh.fsdp=4"])
    layout = VocabularyLayout.soda()
    two = plan.Planner(halves, layout, parse_topology("h100:4", 2), None, True).make(halves)
    assert {"network", "links"} <= set(two.bounds())


def test_offload_is_bound_by_the_link_to_the_host():
    config = load_config("soda_1_7b", ["--config.model.remat=offload"])
    outcome = planner(topology="v5p:4x4x4").make(config)
    # 28 inputs of layers of 512 x 4096 / 64 tokens, bf16, out and back.
    size = 2 * 28 * (512 * 4096 / 64) * 2048 * 2
    assert outcome.costs.host_bytes == size
    assert outcome.bounds()["host"] == size / 15e9
    value = outcome.to_json()
    assert value["host_traffic"] == size and "host" in value["bounds_seconds"]
    full = planner(topology="v5p:4x4x4").make(load_config("soda_1_7b", []))
    assert "host" not in full.bounds() and full.seconds <= outcome.seconds


def compiled_rows():
    """Rows of the committed table of compiled steps: config, topology, mesh, and figures by column."""
    topologies = {"v5p-32": "v5p:2x2x4", "v5p-64": "v5p:2x4x4", "v5p-128": "v5p:4x4x4", "v5p-256": "v5p:4x4x8"}  # fmt: skip
    text = (Path(__file__).parents[2] / "docs" / "plan.md").read_text("utf-8")
    lines = text.split("docs/figures/plan_table.py -->")[1].split("<!--")[0].strip().splitlines()
    for line in lines[2:]:
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        mesh = {n: int(size) for n, size in (part.split("=") for part in cells[2].split(" × "))}
        if len(mesh) > 1:  # fsdp alone leaves less than a tile, which the estimate knows nothing of
            numbers = [float(cell.replace(",", "")) for cell in (cells[5], cells[8], cells[9])]
            yield cells[0], topologies[cells[1]], mesh, *numbers


@pytest.mark.parametrize(
    ("config", "topology", "mesh", "temporaries", "arithmetic", "memory"), compiled_rows()
)
def test_estimates_come_near_what_was_compiled(
    config, topology, mesh, temporaries, arithmetic, memory
):
    chosen = load_config(config, [f"--config.mesh.{n}={size}" for n, size in mesh.items()])
    found = planner(topology=topology, config=config).make(chosen)
    bounds = {name: 1e3 * seconds for name, seconds in found.bounds().items()}
    assert bounds["arithmetic"] == pytest.approx(arithmetic, rel=0.1)
    assert bounds["memory"] == pytest.approx(memory, rel=0.2)
    assert found.memory.temporaries / 1e9 == pytest.approx(temporaries, rel=0.25)


def arguments(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args, args.unknown = parser.parse_known_args(words)
    return args


def test_the_command_prints_one_json_object(capsys):
    words = ("--config=soda_600m", "--topology=h200:8", "--json", "--estimate")
    assert command.run(arguments(*words)) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["parameters"] == 736_698_368 and value["chips"] == 8


def test_a_step_that_does_not_fit_ends_with_1(capsys):
    words = ("--config=soda_4b", "--topology=h100:1", "--estimate")
    assert command.run(arguments(*words)) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_a_tpu_without_its_compiler_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "libtpu", None)
    config, layout = load_config("soda_135m", []), VocabularyLayout.soda()
    with pytest.raises(UserError, match=r"pip install 'soda-jax\[tpu\]'"):
        plan.Planner(config, layout, parse_topology("v5p:2x2x1"), None, False)


def test_a_compiled_step_is_the_trainers_and_its_costs_are_those_of_the_model():
    """On simulated devices: the parts that need no TPU."""
    config = load_config("demo", ["--config.mesh.data=2", "--config.mesh.fsdp=4"])
    layout = VocabularyLayout(260, (256, 257, 258, 259), 256, 257, (16,) * 4)
    step = compile_step(config, layout, jax.devices()[:8])
    decoder = step.program.model.config
    tokens = config.batch_size * config.data.sequence_length / 8
    # Forward and backward products of the layers, whole squares of scores, and the head with padding.
    attention = (
        config.model.layers * 12 * decoder.heads * decoder.head_dim * config.data.sequence_length
    )
    rows = decoder.vocabulary.rows - decoder.vocabulary.size
    wanted = (6 * (decoder.matmul_parameters + rows * decoder.width) + attention) * tokens
    assert step.costs.flops == pytest.approx(wanted, rel=0.02)
    assert step.costs.flops_once <= step.costs.flops and step.costs.open_loops == 0
    params = sum(leaf.size for leaf in jax.tree.leaves(step.program.abstract["params"])) * 4
    assert step.memory.parameters == pytest.approx(params / 4, rel=0.05)
    assert step.memory.optimizer == pytest.approx(2 * step.memory.parameters, rel=0.01)
    sent = step.costs.sent()
    assert any("fsdp" in axes for axes in sent) and any("data" in axes for axes in sent)
    assert isinstance(config, ConfigDict)


@pytest.mark.parametrize(
    ("topology", "slices", "override", "told"),
    [
        ("h100:64", 1, "batch_size=500", "500 windows cannot be split over dcn x data x fsdp = 64"),
        ("h100:8", 1, "accumulate=0", "is not a multiple of accumulate 0"),
        ("h100:8", 1, "batch_size=0", "batch_size 0 must be at least 1"),
        ("h100:8", 1, "loss_chunk=-1", "loss_chunk -1 must be at least 1, or 0: by platform"),
        ("h100:8", 1, "model.attention=foo", "'foo' is unknown"),
        ("h100:8", 1, "model.attention=splash", "does not run on gpu"),
        ("v5p:2x2x1", 2, "batch_size=512", "set --config.mesh.dcn=-1"),
    ],
)
def test_an_estimate_refuses_what_the_run_would_refuse(topology, slices, override, told):
    config = load_config("soda_135m", [f"--config.{override}"])
    layout = VocabularyLayout.soda()
    one = plan.Planner(config, layout, parse_topology(topology, slices), None, True)
    with pytest.raises(UserError, match=told):
        one.make(config)


@pytest.mark.parametrize(
    "told",
    [
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error.\nUsed 120.50G of 95.74G hbm. Exceeded",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(120.50G) exceeds available HBM (95.74G).",
    ],
)
def test_a_compiler_without_room_is_understood_in_each_of_its_words(told):
    error = _told(RuntimeError(told))
    assert isinstance(error, DoesNotFitError) and error.needed == 120.5 * 2**30
    assert str(error) == "the step needs 120.50G of the 95.74G of a chip"
    assert not isinstance(_told(RuntimeError("INTERNAL: x")), DoesNotFitError)


@pytest.mark.parametrize("price", ["-1", "nan", "inf"])
def test_a_price_that_is_no_amount_is_refused(price):
    words = ("--config=soda_135m", "--topology=h100:8", f"--price_per_chip_hour={price}")
    with pytest.raises(UserError, match="must be a number from 0 on"):
        command.run(arguments(*words))
