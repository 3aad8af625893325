#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 with jax 0.10.2: a pytree that contains a jax.Array without elements cannot be saved.
# PyTreeCheckpointer raises ValueError. numpy's npz and safetensors store the same array and read it back with
# its shape.
#
# Such arrays occur in a model with an optional part of size 0, for example an embedding block for the
# codebooks of a codec in a text-only run.
#
# Expected: the array is saved and restored with its shape, as by the other formats.
#
# Observed for float32 of shape (0, 4):
#   npz          (0, 4)
#   safetensors  (0, 4)
#   orbax        ValueError: Cannot save arrays with zero size
#
# The decoder therefore has no parameters for blocks without rows (soda_jax/model/decoder.py).
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 orbax-checkpoint==0.12.8 safetensors==0.8.0
cat >"$folder/save.py" <<'PYTHON'
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import load_file, save_file

folder = sys.argv[1]
array = np.zeros((0, 4), np.float32)
np.savez(f"{folder}/a.npz", array=array)
print("npz         ", np.load(f"{folder}/a.npz")["array"].shape)
save_file({"array": array}, f"{folder}/a.safetensors")
print("safetensors ", load_file(f"{folder}/a.safetensors")["array"].shape)
try:
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(f"{folder}/checkpoint", {"array": jnp.asarray(array)})
        print("orbax       ", checkpointer.restore(f"{folder}/checkpoint")["array"].shape)
except ValueError as error:
    print("orbax        ValueError:", str(error).split(":")[0])
PYTHON
found=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/save.py" "$folder" 2>/dev/null)
expected='npz          (0, 4)
safetensors  (0, 4)
orbax        ValueError: Cannot save arrays with zero size'
printf '%s\n' "$found"
[[ $found == "$expected" ]] || { echo 'the behavior changed'; exit 1; }
