"""`soda plan` without the TPU compiler: topologies, estimates, errors and output."""

import argparse
import json
import math
from pathlib import Path

import jax
import pytest

from soda_jax.commands import plan as command
from soda_jax.commands._config import load_config
from soda_jax.errors import UserError
from soda_jax.hardware import GIB
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
from soda_jax.parallel import rules
from soda_jax.plan import run as plan
from soda_jax.plan.compiled import DoesNotFitError, _compiler_error, compile_step
from soda_jax.plan.estimate import estimate_step
from soda_jax.plan.topologies import parse_topology
from soda_jax.schema import run_config
from soda_jax.tokens.vocabulary import VocabularyLayout


@pytest.mark.parametrize(
    ("text", "chips", "memory"),
    [
        ("v5p:4x4x8", 128, 95.74), ("v5e:4x8", 32, 15.75), ("v5e:4x2", 8, 15.75), ("v5e:1x1", 1, 15.75),
        ("v4:2x2x1", 4, 30.75), ("v6e:8x8", 64, 31.25), ("tpu7x:2x2x1", 4, 94.75), ("v2:4x4", 16, 7.48),
        ("v3:32x32", 1024, 15.48), ("v4:4x4x256", 4096, 30.75), ("H100:8", 8, 0.75 * 79.1),
        ("a100:16", 16, 0.75 * 39.4), ("b200:8", 8, 0.75 * 178.3),
    ],
)  # fmt: skip
def test_a_topology_is_chip_and_shape_and_the_memory_that_a_program_can_use(text, chips, memory):
    found = parse_topology(text)
    assert found.chips == chips and found.memory / GIB == pytest.approx(memory)
    assert parse_topology(text, 2).chips == 2 * chips


def test_each_device_of_a_chip_of_two_has_half_its_rates():
    found = parse_topology("tpu7x:2x2x1")
    assert (found.chips, found.devices, found.size) == (4, 8, "4 chips (8 devices)")
    assert (parse_topology("v4:2x2x1").devices, parse_topology("v3:2x2", 2).devices) == (4, 16)
    one = planner(topology="tpu7x:2x2x1", price=1.0)
    outcome = one.make(one.config)
    assert math.prod(outcome.mesh.values()) == 8
    bounds = outcome.bounds()
    assert bounds["arithmetic"] == pytest.approx(outcome.costs.flops / (2307e12 / 2))
    assert bounds["memory"] == pytest.approx(outcome.costs.bytes / (7380e9 / 2))
    value = outcome.to_json()
    # Eight devices of half a chip have the peak of four chips, and four chips are paid for.
    assert value["mfu_bound"] == pytest.approx(
        value["model_flops"] / value["roofline_seconds"] / (4 * 2307e12)
    )
    assert value["cost"] == pytest.approx(value["days"] * 24 * 4)


def test_the_memory_of_gpus_is_the_fraction_that_jax_allocates(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert parse_topology("h200:8").memory / GIB == pytest.approx(0.9 * 139.8)
    assert parse_topology("v5e:4x4").memory / GIB == 15.75
    for text in ("0", "much", "1.5", "nan"):
        monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", text)
        with pytest.raises(UserError, match=f"MEM_FRACTION={text} must be above 0"):
            _ = parse_topology("h200:8").memory


@pytest.mark.parametrize(
    ("text", "slices", "message"),
    [
        ("v9:2x2", 1, "--topology=v9:2x2 is unknown: use CHIP:SHAPE with CHIP one of v2, v3, v4, v5e, v5p, v6e, tpu7x, a100"),
        ("v5p", 1, "as in v4:2x2x4"),
        ("v5p:0x2x2", 1, "is unknown"),
        ("v5p:4x4", 1, "the shape of v5p is AxBxC"),
        ("h100:2x4", 1, "the shape of h100 is a number of GPUs"),
        ("h100:12", 1, "a node has 8 GPUs, so the number of GPUs must be at most 8, or a multiple"),
        ("v2:16x32", 1, r"the slices of v2 are 1x1, .*, 8x16, 16x16 \(256 chips\), in either order"),
        ("v3:64x64", 1, r"the slices of v3 are .*, 16x32, 32x32 \(1,024 chips\)"),
        ("v4:16x16x20", 1, "the largest slice of v4 is 16x16x16, 4,096 chips"),
        ("v5e:16x32", 1, r"v5e are .* 16x16 \(256 chips\)"), ("v5e:8x32", 1, r"v5e are .* 16x16 \(256"),
        ("v5p:16x20x28", 2, "the largest slice of v5p is 16x16x24, 6,144 chips"),
        ("v6e:999999x999999", 1, r"the slices of v6e are .* 16x16 \(256 chips\)"),
        ("tpu7x:24x24x24", 1, "the largest slice of tpu7x is 16x24x24, 9,216 chips"),
        ("v5e:3x1", 1, "1x1, 1x2, 2x2, 2x4, 4x4"), ("v5e:1x5", 1, "1x1, 1x2"), ("v6e:3x2", 1, "1x2, 2x2"),
        ("v2:7x1", 1, "1x1, 1x2"), ("v5e:2x16", 1, "2x4, 4x4, 4x8"),
        ("v5p:3x3x3", 1, "whole hosts of 2x2x1 chips, .* such as v5p:4x4x3"),
        ("v4:1x7x1", 1, "or of whole cubes of 4x4x4 if a side is above 4, such as v4:4x8x4"),
        ("v4:5x1x1", 1, "such as v4:8x4x4"), ("v4:2x2x8", 1, "such as v4:4x4x8"),
        ("v5p:4x6x2", 1, "such as v5p:4x8x4"), ("tpu7x:8x2x1", 1, "such as tpu7x:8x4x4"),
    ],
)  # fmt: skip
def test_an_invalid_topology_is_refused_with_the_valid_names(text, slices, message):
    with pytest.raises(UserError, match=message):
        parse_topology(text, slices)


def config_of(name, overrides):
    return run_config(load_config(name, overrides))


def planner(*overrides, topology="h100:8", config="soda_135m", price=None):
    found = config_of(config, [f"--config.{one}" for one in overrides])
    return plan.Planner(found, VocabularyLayout.soda(), parse_topology(topology), price, True)


def test_an_estimate_counts_the_state_exactly_and_the_rest_by_its_arrays():
    one = planner(price=2.0)
    outcome = one.make(one.config)
    assert (outcome.mesh["data"], outcome.mesh["fsdp"]) == (2, 4)
    blocks = 2 * (128_512 - 128_260) * 512  # padding rows are stored but not counted
    assert outcome.memory.parameters == pytest.approx(4 * outcome.decoder.parameters / 4)
    assert outcome.memory.optimizer == 2 * outcome.memory.parameters
    assert blocks / outcome.decoder.parameters < 2e-3
    value = outcome.to_json()
    assert value["tokens"] == 238_419 * 512 * 4096
    assert value["cost"] == pytest.approx(value["chip_hours"] * 2.0)
    assert value["roofline_seconds"] == max(value["bounds_seconds"].values())
    assert 0 < value["mfu_bound"] < 1 and value["fits"]
    # Full rematerialization runs the forward pass of the layers twice.
    none = planner("model.remat=none").make(config_of("soda_135m", ["--config.model.remat=none"]))
    assert none.costs.flops < outcome.costs.flops < 4 / 3 * none.costs.flops
    assert none.memory.temporaries > 2 * outcome.memory.temporaries


def test_traffic_between_nodes_of_gpus_uses_the_network():
    inside = planner("mesh.fsdp=8").make(config_of("soda_4b", ["--config.mesh.fsdp=8"]))
    assert "links" in inside.bounds() and "network" not in inside.bounds()
    config = config_of("soda_4b", ["--config.mesh.fsdp=64"])
    across = planner(topology="h100:64").make(config)
    assert "network" in across.bounds() and "links" not in across.bounds()


def test_dcn_of_gpus_is_the_number_of_nodes():
    config = config_of("soda_1_7b", ["--config.mesh.dcn=-1"])
    outcome = planner(topology="h100:64").make(config)
    assert (outcome.mesh["dcn"], outcome.mesh["data"] * outcome.mesh["fsdp"]) == (8, 8)
    # Only gradients cross nodes; fsdp gathers weights over NVLink.
    assert {"network", "links"} <= set(outcome.bounds())
    assert planner(topology="h100:8").make(config).mesh["dcn"] == 1
    assert parse_topology("h100:4", 2).domains == 2
    halves = config_of("soda_135m", ["--config.mesh.data=2", "--config.mesh.fsdp=4"])
    layout = VocabularyLayout.soda()
    two = plan.Planner(halves, layout, parse_topology("h100:4", 2), None, True).make(halves)
    assert {"network", "links"} <= set(two.bounds())


def test_offload_is_limited_by_the_link_to_the_host():
    config = config_of("soda_1_7b", ["--config.model.remat=offload"])
    outcome = planner(topology="v5p:4x4x4").make(config)
    # Inputs of 28 layers, 512 x 4096 / 64 tokens each, bf16, written and read.
    size = 2 * 28 * (512 * 4096 / 64) * 2048 * 2
    assert outcome.costs.host_bytes == size
    assert outcome.bounds()["host"] == size / 15e9
    value = outcome.to_json()
    assert value["host_traffic"] == size and "host" in value["bounds_seconds"]
    full = planner(topology="v5p:4x4x4").make(config_of("soda_1_7b", []))
    assert "host" not in full.bounds() and full.seconds <= outcome.seconds


def compiled_rows():
    """Yields config, topology, mesh, arithmetic and memory time of the compiled steps in docs/plan.md."""
    topologies = {"v5p-32": "v5p:2x2x4", "v5p-64": "v5p:2x4x4", "v5p-128": "v5p:4x4x4", "v5p-256": "v5p:4x4x8"}  # fmt: skip
    text = (Path(__file__).parents[2] / "docs" / "plan.md").read_text("utf-8")
    lines = text.split("docs/figures/plan_table.py -->")[1].split("<!--")[0].strip().splitlines()
    for line in lines[2:]:
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        mesh = {n: int(size) for n, size in (part.split("=") for part in cells[2].split(" × "))}
        if len(mesh) > 1:  # only fsdp leaves less than a tile, which the estimate does not model
            numbers = [float(cell.replace(",", "")) for cell in cells[8:10]]
            yield cells[0], topologies[cells[1]], mesh, *numbers


def memory_rows():
    """Yields config, topology, overrides, GiB compiled and GiB estimated from docs/plan.md."""
    text = (Path(__file__).parents[2] / "docs" / "plan.md").read_text("utf-8")
    lines = (
        text.split("docs/figures/estimate_table.py -->")[1].split("<!--")[0].strip().splitlines()
    )
    for line in lines[2:]:
        config, topology, overrides, compiled, estimated, _ = (
            cell.strip() for cell in line.strip("|").split("|")
        )
        words = [one.strip("`") for one in overrides.split(", ") if one]
        yield config.strip("`"), topology, words, float(compiled), float(estimated)


@pytest.mark.parametrize(("config", "topology", "overrides", "compiled", "written"), memory_rows())
def test_the_estimated_memory_is_close_to_the_compiled_one(
    config, topology, overrides, compiled, written
):
    one = planner(*overrides, topology=topology, config=config)
    total = one.make(one.config).memory.total / GIB
    assert total == pytest.approx(compiled, rel=0.12)
    assert total == pytest.approx(written, abs=0.006)


@pytest.mark.parametrize(("config", "topology", "mesh", "arithmetic", "memory"), compiled_rows())
def test_estimated_times_are_close_to_the_compiled_ones(config, topology, mesh, arithmetic, memory):
    chosen = config_of(config, [f"--config.mesh.{n}={size}" for n, size in mesh.items()])
    found = planner(topology=topology, config=config).make(chosen)
    bounds = {name: 1e3 * seconds for name, seconds in found.bounds().items()}
    assert bounds["arithmetic"] == pytest.approx(arithmetic, rel=0.1)
    assert bounds["memory"] == pytest.approx(memory, rel=0.2)


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


def test_a_missing_tpu_compiler_is_an_error_that_names_the_package(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "libtpu", None)
    config, layout = config_of("soda_135m", []), VocabularyLayout.soda()
    with pytest.raises(UserError, match=r"pip install 'soda-jax\[tpu\]'"):
        plan.Planner(config, layout, parse_topology("v5p:2x2x1"), None, False)


def test_costs_of_the_compiled_step_of_the_trainer_are_those_of_the_model():
    """Runs on simulated devices: the parts that need no TPU."""
    config = config_of("demo", ["--config.mesh.data=2", "--config.mesh.fsdp=4"])
    layout = VocabularyLayout(260, (256, 257, 258, 259), 256, 257, (16,) * 4)
    step = compile_step(config, layout, jax.devices()[:8])
    model = ModelFunctions(
        decoder_config(config.model, VocabularyBlocks(layout.audio_base, layout.codebook_sizes))
    )
    decoder = model.config
    tokens = config.batch_size * config.data.sequence_length / 8
    # Forward and backward products of the layers, whole squares of scores, and the head with padding.
    attention = (
        config.model.num_layers
        * 12
        * decoder.num_heads
        * decoder.head_dim
        * config.data.sequence_length
    )
    rows = decoder.vocabulary.rows - decoder.vocabulary.size
    wanted = (6 * (decoder.matmul_parameters + rows * decoder.hidden_size) + attention) * tokens
    assert step.costs.flops == pytest.approx(wanted, rel=0.02)
    assert step.costs.flops_once <= step.costs.flops and step.costs.open_loops == 0
    params = sum(leaf.size for leaf in jax.tree.leaves(model.abstract)) * 4
    assert step.memory.parameters == pytest.approx(params / 4, rel=0.05)
    assert step.memory.optimizer == pytest.approx(2 * step.memory.parameters, rel=0.01)
    sent = step.costs.sent()
    assert any("fsdp" in axes for axes in sent) and any("data" in axes for axes in sent)


@pytest.mark.parametrize(
    ("topology", "slices", "override", "message"),
    [
        ("h100:64", 1, "batch_size=500", "500 windows cannot be split over dcn x data x fsdp = 64"),
        (
            "h100:8",
            1,
            "gradient_accumulation=0",
            "gradient_accumulation = 0 must be an integer, at least 1",
        ),
        ("h100:8", 1, "batch_size=0", "batch_size = 0 must be an integer, at least 1"),
        ("h100:8", 1, "loss_chunk=-1", "loss_chunk = -1 must be an integer, at least 0"),
        ("h100:8", 1, "model.attention=foo", "'foo' is not a registered attention backend"),
        ("h100:8", 1, "model.attention=splash", "does not run on gpu"),
        (
            "h100:8",
            1,
            "data.sequence_length=0",
            "sequence_length = 0 must be an integer, at least 2",
        ),
        ("h100:5", 1, "batch_size=512", "512 windows cannot be split over dcn x data x fsdp = 5"),
        ("h100:3", 1, "mesh.fsdp=2", "does not multiply to 3 devices"),
        ("v2:2x2", 1, "model.attention=auto", "set --config.model.attention=xla"),
        ("v3:4x4", 1, "model.attention=splash", "set --config.model.attention=xla"),
        ("v5p:2x2x1", 2, "batch_size=512", "set --config.mesh.dcn=-1"),
    ],
)
def test_an_estimate_refuses_what_the_run_would_refuse(topology, slices, override, message):
    config = load_config("soda_135m", [f"--config.{override}"])
    layout, chips = VocabularyLayout.soda(), parse_topology(topology, slices)
    with pytest.raises(UserError, match=message):
        plan.Planner(config, layout, chips, None, True).make(run_config(config))


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error.\nUsed 120.50G of 95.74G hbm. Exceeded",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(120.50G) exceeds available HBM (95.74G).",
    ],
)
def test_every_memory_error_of_the_compiler_is_recognized(message):
    error = _compiler_error(RuntimeError(message))
    assert isinstance(error, DoesNotFitError) and error.needed == 120.5 * 2**30
    assert str(error) == "the step needs 120.50 GiB, but a device has 95.74 GiB"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "HLO temporaries (980.00M) exceeds available HBM (0.50G).",
            "0.96 GiB, but a device has 0.50 GiB",
        ),
        ("Ran out of vmem: 16.5M of 16.00M, %fusion.3K", "16.5 MiB of 16.00 MiB, %fusion.3K"),
        ("INTERNAL: x\nand more", "failed to compile the training step: INTERNAL: x"),
    ],
)
def test_errors_of_the_compiler_are_one_line_in_binary_units(message, line):
    error = _compiler_error(RuntimeError(message))
    assert line in str(error) and "\n" not in str(error)
    assert isinstance(error, DoesNotFitError) == ("HBM" in message)


@pytest.mark.parametrize("price", ["-1", "nan", "inf"])
def test_a_price_that_is_not_a_finite_amount_is_refused(price):
    words = ("--config=soda_135m", "--topology=h100:8", f"--price_per_chip_hour={price}")
    with pytest.raises(UserError, match="must be finite and at least 0"):
        command.run(arguments(*words))


def test_a_new_batch_axis_is_estimated_like_the_data_axis(monkeypatch):
    layout = VocabularyLayout.soda()
    config = config_of("soda_1_7b", [])
    blocks = VocabularyBlocks.of(layout)
    decoder = decoder_config(config.model, blocks)
    ones = dict.fromkeys(rules.MESH_AXES, 1)
    step = estimate_step(config, decoder, {**ones, "data": 8}, "gpu")
    axes = {**rules.MESH_AXES, "replica": ("batch", "rows")}
    with_axis = {**rules.RULES, "batch": (*rules.RULES["batch"], "replica")}
    monkeypatch.setattr(rules, "MESH_AXES", axes)
    monkeypatch.setattr(rules, "RULES", with_axis)
    new = estimate_step(config, decoder, {**ones, "replica": 8}, "gpu")
    costs, new_costs = step.costs, new.costs
    assert new.memory == step.memory
    assert (new_costs.flops, new_costs.bytes) == (costs.flops, costs.bytes)
    sent = [(one.kind, one.bytes, one.times) for one in costs.collectives]
    assert [(one.kind, one.bytes, one.times) for one in new_costs.collectives] == sent != []
    whole = estimate_step(config, decoder, ones, "gpu")
    assert whole.memory.batch == 8 * step.memory.batch  # the axis does split the batch
