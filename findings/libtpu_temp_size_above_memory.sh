#!/usr/bin/env bash
# libtpu 0.0.42.1 (with jax 0.10.2): temp_size_in_bytes of a compiled program can exceed the memory of the
# device in a program that fits.
#
# Compiled.memory_analysis() of a rematerialized scan for TPU v5e (15.75 GiB available) reports more temporary
# bytes than a device has, yet the compiler accepts the program: the buffers do not exist at the same time.
# The compiler checks peak_memory_in_bytes, which includes arguments and results: the error for a program that
# is too large contains the same number. The sum of argument_size, temp_size and output_size would reject
# programs that run.
#
# soda plan uses peak_memory_in_bytes for TPUs.
#
# Observed (GiB; the second program, without rematerialization, fits a TPU v5p only):
#   v5e: arguments 1.25, results 0.75, temporaries 16.06, peak 13.50: compiles
#   v5p: arguments 1.00, results 0.75, temporaries 53.50, peak 54.00
#   v5e: the same program: HLO temporaries (54.00G) exceeds available HBM (15.75G)
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1

JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost TPU_ACCELERATOR_TYPE=v5p-8 \
  TPU_MIN_LOG_LEVEL=3 TPU_STDERR_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PYTHON'
import re
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies

TOKENS, WIDTH, HIDDEN, LAYERS = 65536, 2048, 8192, 12


def layer(x, weights):
    first, second = weights
    return x + jax.nn.silu(x @ first) @ second, None


def gradient(step):
    def loss(x, weights):
        return jnp.sum(jax.lax.scan(step, x, weights)[0].astype(jnp.float32))

    return jax.jit(jax.grad(loss, argnums=1))


def analyze(topology, step, tokens):
    """GiB of (arguments, results, temporaries, peak)."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    shapes = (tokens, WIDTH), (LAYERS, WIDTH, HIDDEN), (LAYERS, HIDDEN, WIDTH)
    x, *weights = (jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=sharding) for s in shapes)
    found = gradient(step).lower(x, tuple(weights)).compile().memory_analysis()
    names = ("argument_size", "output_size", "temp_size", "peak_memory")
    return [getattr(found, f"{name}_in_bytes") / 2**30 for name in names]


def line(values):
    return "arguments {:.2f}, results {:.2f}, temporaries {:.2f}, peak {:.2f}".format(*values)


small = analyze("v5e:2x2", jax.checkpoint(layer), 2 * TOKENS)
print(f"v5e: {line(small)}: compiles")
large = analyze("v5p:2x2x1", layer, TOKENS)
print(f"v5p: {line(large)}")
try:
    analyze("v5e:2x2", layer, TOKENS)
    sys.exit("the large program now compiles for v5e")
except jax.errors.JaxRuntimeError as error:
    reason = re.search(r"HLO temporaries \(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", str(error))
print(f"v5e: the same program: {reason[0]}")
needed, room = float(reason[1]), float(reason[2])
as_observed = small[2] > room > small[3] and abs(large[3] - needed) < 0.01
sys.exit(not as_observed)
PYTHON
