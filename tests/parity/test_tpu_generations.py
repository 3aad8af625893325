"""Compiles a tiny training step for every TPU generation, and reads the memory that the compiler reports."""

import concurrent.futures
import json
import os
import subprocess
import sys

import pytest

from soda_jax.hardware import CHIPS, GIB

pytest.importorskip("libtpu")

# A host of each kind and special shapes: v4 with one device per chip, v5e on two hosts, single chips.
TOPOLOGIES = {
    "v2:1x1": 2, "v3:2x1": 4, "v4:2x2x1": 4, "v5e:4x2": 8, "v5e:1x1": 1, "v5p:2x2x1": 4, "v6e:2x2": 4,
    "tpu7x:2x2x1": 8,
}  # fmt: skip
HALVES = (("v2:1x1", "v4:2x2x1", "v5e:1x1", "v6e:2x2"), ("v3:2x1", "v5e:4x2", "v5p:2x2x1", "tpu7x:2x2x1"))  # fmt: skip

# For each topology: the plan of a tiny step, and the error of the compiler for a program that is too large.
PROGRAM = """
import json, sys
from soda_jax.plan.topologies import parse_topology, set_compiler_environment, tpu_devices
set_compiler_environment()
import jax
from soda_jax.commands._config import load_config
from soda_jax.plan.compiled import _compiler_error
from soda_jax.plan.run import Planner
from soda_jax.tokens.vocabulary import VocabularyLayout

layout = VocabularyLayout(260, (256, 257, 258, 259), 256, 257, (16,) * 4)
small = {"num_layers": 1, "hidden_size": 128, "intermediate_size": 128, "num_heads": 1, "num_kv_heads": 1, "head_dim": 128}
words = [f"--config.model.{name}={size}" for name, size in small.items()]
words += ["--config.data.sequence_length=128", "--config.batch_size=8"]
for name in sys.argv[1:]:
    topology = parse_topology(name)
    attention = [] if topology.chip.kernels else ["--config.model.attention=xla"]
    config = load_config("soda_135m", [*words, *attention])
    found = Planner(config, layout, topology, None, False).make(config).to_json()
    one = jax.sharding.SingleDeviceSharding(tpu_devices(topology)[0])
    try:
        large = jax.ShapeDtypeStruct((300 << 18, 1024), "float32", sharding=one)
        jax.jit(jax.numpy.sum).lower(large).compile()
    except jax.errors.JaxRuntimeError as error:
        found["too_large"] = str(_compiler_error(error))
    print(json.dumps({**found, "name": name}))
"""


def run(names):
    # A new process, because the environment of the compiler is set before jax is imported.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        capture_output=True, text=True, timeout=900, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def plans():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return {one["name"]: one for half in pool.map(run, HALVES) for one in half}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_step_compiles_for_every_generation_on_the_devices_that_the_plan_counts(plans, name):
    plan = plans[name]
    assert plan["devices"] == TOPOLOGIES[name] and plan["fits"]
    assert plan["source"].startswith(f"compiled for {CHIPS[name.split(':')[0]].kinds[0]} in ")
    assert plan["loops_of_unknown_length"] == 0 and plan["device_flops"] > 0


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_memory_of_the_table_is_what_the_compiler_can_use(plans, name):
    room = CHIPS[name.split(":")[0]].usable / GIB
    assert plans[name]["too_large"] == f"the step needs 300.00 GiB, but a device has {room:.2f} GiB"
    assert plans[name]["device_memory"] == room * GIB
