#!/usr/bin/env bash
# jaxlib 0.10.2 on a CPU with bf16 instructions (x86-64 with avx512_bf16): the form of a bf16 matrix product
# decides whether these instructions are used, and one valid form fails when it is executed.
#
# Expected: a product of two bf16 matrices compiles to the same kernel whatever the dtype of its result is and
# whichever axes it contracts, and every program that compiles runs.
#
# Observed with operands of 512 × 512 and 512 × 256:
#   - bf16 result, as `a @ b` gives: both operands are converted to f32 and multiplied as f32, so bf16 gains
#     nothing;
#   - f32 result (preferred_element_type): the bf16 operands are multiplied as they are;
#   - f32 result, first axes contracted, as in the gradient of a weight: converted to f32;
#   - f32 result, then transposed: compiles, and raises UNIMPLEMENTED: Unsupported element type for
#     DotThunk::Execute: BF16 x BF16 = F32.
#
# `soda_jax/model/products.py` writes the products of bf16 training in the second form.
#
# Exit status: 0 as observed or on a CPU without avx512_bf16, 1 if the behavior changed.
set -euo pipefail
if ! grep -qw avx512_bf16 /proc/cpuinfo; then
  echo "this CPU has no avx512_bf16: nothing to observe"
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/run.py" <<'PYTHON'
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
import jax
import jax.numpy as jnp

a = jnp.ones((512, 512), jnp.bfloat16)
b = jnp.ones((512, 256), jnp.bfloat16)


def product(axis, result):
    def run(a, b):
        dimensions = (((axis,), (0,)), ((), ()))
        return jax.lax.dot_general(a, b, dimensions, preferred_element_type=result)

    return run


def converted(function):
    text = jax.jit(function).lower(a, b).compile().as_text()
    return "f32[512,256]{1,0} convert(" in text


found = {
    "bf16 result": converted(product(1, jnp.bfloat16)),
    "f32 result": converted(product(1, jnp.float32)),
    "f32 result, first axes": converted(product(0, jnp.float32)),
}
for name, answer in found.items():
    print(f"{name}: operands {'converted to f32' if answer else 'multiplied as bf16'}")
transposed = jax.jit(lambda a, b: product(1, jnp.float32)(a, b).T)
try:
    transposed(a, b).block_until_ready()
    raised = "runs"
except jax.errors.JaxRuntimeError as error:
    raised = str(error).splitlines()[0]
print(f"f32 result, transposed: {raised}")
same = list(found.values()) == [True, False, True] and raised.startswith("UNIMPLEMENTED")
sys.exit(0 if same else "the behavior changed")
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
