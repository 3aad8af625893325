"""The 135M step through the compiler of the TPU, with no TPU: what `soda plan` promises."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")

CHIPS = 4


@pytest.fixture(scope="module")
def plan():
    words = (
        "plan",
        "--config=soda_135m",
        "--topology=v5p:2x2x1",
        "--json",
        "--config.batch_size=32",
    )
    # Its own process: the environment of the compiler is set before the first use of jax.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "soda_jax.cli", *words],
        capture_output=True, text=True, timeout=900, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_step_of_135m_compiles_for_four_v5p_and_fits(plan):
    assert plan["source"].startswith("compiled for TPU v5") and plan["chips"] == CHIPS
    assert plan["fits"] and plan["memory"]["total"] < plan["chip_memory"]
    state = 12 * plan["parameters"] / CHIPS
    held = plan["memory"]["parameters"] + plan["memory"]["optimizer"]
    assert held == pytest.approx(state, rel=0.01)


def test_attention_is_the_kernel_and_its_flops_are_counted(plan):
    # 15 layers, 8 heads of 64, causal halves: 2 products forward, twice for rematerialisation, 7 backward.
    tokens = 32 * 4096 / CHIPS
    assert plan["kernel_flops"] == pytest.approx(11 * 15 * 8 * 64 * 4096 * tokens, rel=1e-6)


def test_our_count_with_loops_once_is_xlas_and_loops_count_as_often_as_they_run(plan):
    assert plan["our_flops_loops_once"] == pytest.approx(plan["xla_flops_loops_once"], rel=0.05)
    assert plan["loops_of_unknown_length"] == 0
    # All products of the model run, and the forward pass of the layers a second time.
    least = plan["model_flops"] / CHIPS
    assert least < plan["chip_flops"] < 1.5 * least


def test_weights_are_gathered_and_gradients_scattered_over_fsdp(plan):
    kinds = {row["kind"] for row in plan["collectives"] if row["axes"] == ["fsdp"]}
    assert {"all-gather", "reduce-scatter"} <= kinds


@pytest.mark.parametrize(
    ("topology", "told"), [("v5p:3x3x3", "does not take it"), ("v7:2x2", "v4, v5e, v5p, v6e")]
)
def test_a_topology_that_the_compiler_does_not_know_is_one_line(topology, told):
    words = ("plan", "--config=soda_135m", f"--topology={topology}")
    done = subprocess.run(
        [sys.executable, "-m", "soda_jax.cli", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr
