#!/usr/bin/env bash
# jaxlib 0.10.2 on a CPU: the product of ONE bf16 or int8 row with a matrix takes longer than that of two rows.
#
# Expected: one row needs at most the time of two rows; both read the same matrix.
#
# Observed, 1,024 × 16,384, both operands with their last axis contracted, results in f32 and int32, two cores of an
# Intel Xeon with AMX: bf16 18.5 ms for one row and 1.3 ms for two, int8 18.4 and 0.8 ms. In f32, one row takes
# 1.4 ms and two 5.1 ms. Only products of two or more narrow rows become a library call.
#
# `soda_jax/model/output_major.py` pads one row to two.
#
# Exit status: 0 if one row takes at least twice the time of two rows in both dtypes, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/run.py" <<'PYTHON'
import os
import statistics
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
import jax
import jax.numpy as jnp

changed = False
for kind, result in ((jnp.bfloat16, jnp.float32), (jnp.int8, jnp.int32)):
    matrix = jnp.ones((16_384, 1_024), kind)
    seconds = {}
    for rows in (1, 2):
        x = jnp.ones((rows, 1_024), kind)
        product = jax.jit(
            lambda x, m, result=result: jax.lax.dot_general(
                x, m, (((1,), (1,)), ((), ())), preferred_element_type=result
            )
        )
        product(x, matrix).block_until_ready()
        times = []
        for _ in range(15):
            began = time.perf_counter()
            product(x, matrix).block_until_ready()
            times.append(time.perf_counter() - began)
        seconds[rows] = statistics.median(times)
    print(f"{kind.__name__}: {1e3 * seconds[1]:.1f} ms for one row, {1e3 * seconds[2]:.1f} ms for two")
    changed |= seconds[1] < 2 * seconds[2]
sys.exit(int(changed))
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
