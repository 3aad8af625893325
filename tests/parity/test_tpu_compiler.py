"""Compiles steps for TPUs without a TPU: the figures of `soda plan`, and splash on split meshes."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")

CHIPS = 4


# Two layers, no wider than four shards of a tile need: these tests check how the arrays are split.
SMALL = {
    "model.num_layers": 2, "model.hidden_size": 512, "model.intermediate_size": 512, "model.num_heads": 4,
    "model.num_kv_heads": 2, "model.head_dim": 128, "data.sequence_length": 1024, "batch_size": 8,
}  # fmt: skip
KERNEL = (
    4 * 128 * 1024**2 * 8 * 2
)  # heads · head_dim · scores · windows · layers: a product, causal half


def compiled(*words, **overrides):
    """Returns the plan of the 135M config with other values, on slices of four v5p."""
    words = ("plan", "--config=soda_135m", "--topology=v5p:2x2x1", "--json", *words)
    settings = [f"--config.{name}={value}" for name, value in overrides.items()]
    # A new process, because the environment of the compiler is set before jax is imported.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "soda_jax.cli", *words, *settings],
        capture_output=True, text=True, timeout=900, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def plan():
    return compiled(batch_size=32)


def test_the_step_of_135m_compiles_for_four_v5p_and_fits(plan):
    assert plan["source"].startswith("compiled for TPU v5") and plan["chips"] == CHIPS
    assert plan["fits"] and plan["memory"]["total"] < plan["device_memory"]
    state = 12 * plan["parameters"] / CHIPS
    held = plan["memory"]["parameters"] + plan["memory"]["optimizer"]
    assert held == pytest.approx(state, rel=0.01)


def test_attention_is_the_kernel_and_its_flops_are_counted(plan):
    # 15 layers, 8 heads of 64, causal halves: 2 products forward, twice for rematerialization, 7 backward.
    tokens = 32 * 4096 / CHIPS
    assert plan["kernel_flops"] == pytest.approx(11 * 15 * 8 * 64 * 4096 * tokens, rel=1e-6)


def test_our_count_with_loops_once_equals_xlas_and_loops_count_as_often_as_they_run(plan):
    assert plan["our_flops_loops_once"] == pytest.approx(plan["xla_flops_loops_once"], rel=0.05)
    assert plan["loops_of_unknown_length"] == 0
    # All products of the model run, and the forward pass of the layers a second time.
    least = plan["model_flops"] / CHIPS
    assert least < plan["device_flops"] < 1.5 * least


def test_weights_are_gathered_and_gradients_scattered_over_fsdp(plan):
    kinds = {row["kind"] for row in plan["collectives"] if row["axes"] == ["fsdp"]}
    assert {"all-gather", "reduce-scatter"} <= kinds


_SUMS = """
from soda_jax.plan.topologies import parse_topology, set_compiler_environment, tpu_devices
set_compiler_environment()
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from soda_jax.model import loss

mesh = Mesh(np.array(tpu_devices(parse_topology("v5p:2x2x1"))), ("rows",))
rows, one = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())

def sums(logits, weights, classes, sets, source):
    nll = jax.nn.logsumexp(logits, axis=-1)
    counts = loss._hits(sets, 20, weights > 0).sum(axis=1)
    return loss.class_sums(nll, weights, classes, source, 10, 2), counts.sum()

shapes = [("f4", 8), ("f4",), ("i1",), ("u1",)]
arrays = [jax.ShapeDtypeStruct((128, 4096, *s), d, sharding=rows) for d, *s in shapes]
arrays.append(jax.ShapeDtypeStruct((128,), jnp.int32, sharding=rows))
jax.jit(sums, out_shardings=one).trace(*arrays).lower(lowering_platforms=("tpu",)).compile()
"""


def test_sums_of_small_integers_compile_with_32_windows_of_4096_per_chip():
    # The compiler aborted here when it fused a conversion of int8 to int32 into the sums.
    done = subprocess.run(
        [sys.executable, "-c", _SUMS], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_splash_compiles_where_heads_and_sequence_are_split():
    plan = compiled(
        **SMALL, **{"mesh.data": 1, "mesh.fsdp": 1, "mesh.tensor": 2, "mesh.sequence": 2}
    )
    assert (plan["mesh"]["tensor"], plan["mesh"]["sequence"], plan["fits"]) == (2, 2, True)
    # Eleven products of a quarter each; the second half of the sequence has three quarters of the scores.
    assert plan["kernel_flops"] == pytest.approx(11 * KERNEL / CHIPS * 1.5, rel=1e-6)
    assert plan["loops_of_unknown_length"] == 0
    axes = {axis for row in plan["collectives"] for axis in row["axes"]}
    assert axes == {"tensor", "sequence"}
    # Keys and values are gathered over the sequence, never heads over tensor.
    gathered = [row for row in plan["collectives"] if row["kind"] == "all-gather"]
    assert any(row["axes"] == ["sequence"] for row in gathered)


def test_slices_exchange_only_gradients():
    plan = compiled("--slices=2", **SMALL, **{"mesh.dcn": -1, "mesh.data": 1, "mesh.fsdp": -1})
    assert plan["chips"] == 2 * CHIPS and plan["mesh"]["dcn"] == 2 and plan["mesh"]["fsdp"] == 4
    assert plan["kernel_flops"] == pytest.approx(11 * KERNEL / (2 * CHIPS), rel=1e-6)
    across = [row for row in plan["collectives"] if "dcn" in row["axes"]]
    assert across and {row["kind"] for row in across} == {"all-reduce"}
    # Each chip sends its part of the gradients once, half of it twice, in bf16 or f32.
    part = plan["parameters"] / CHIPS
    assert 1.9 * part < sum(row["bytes"] for row in across) < 4.5 * part
    assert plan["bounds_seconds"]["network"] > 0


@pytest.mark.parametrize(
    ("topology", "message"),
    [("v5p:3x3x3", "such as v5p:4x4x3"), ("v7:2x2", "v2, v3, v4, v5e, v5p, v6e, tpu7x")],
)
def test_an_impossible_topology_is_an_error_of_one_line(topology, message):
    words = ("plan", "--config=soda_135m", f"--topology={topology}")
    done = subprocess.run(
        [sys.executable, "-m", "soda_jax.cli", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
