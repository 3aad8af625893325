"""The export hook in two processes and both dtypes: neither waits for a gather that only the other runs."""

import os

import pytest
from safetensors.numpy import load_file
from toys import run_two, xla_flags

TWO = """
import sys
from pathlib import Path
port, number, dtype, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
import types
import convert_toys as toys
import jax
import numpy as np
from toys import random_params
from soda_jax.convert.hook import ExportHook
from soda_jax.model import ModelFunctions, decoder_config
from soda_jax.parallel import mesh, rules
from soda_jax.tokens.text import ByteTokenizer, make_layout

layout = make_layout(ByteTokenizer(), toys.CODEBOOKS)
model = ModelFunctions(decoder_config(toys.fields(), toys.blocks(layout)))
params = jax.tree.map(np.array, random_params(model))
where = mesh.make_mesh({"fsdp": 4})
placed = jax.tree.map(
    lambda a, names: jax.make_array_from_callback(
        a.shape, rules.sharding(where, names, a.shape), a.__getitem__
    ),
    params,
    model.axes,
)
about = toys.metadata_of(toys.fields(), ByteTokenizer(), layout)
run = types.SimpleNamespace(
    params=placed, model=model, mesh=where, workdir=folder, step=7, metadata=lambda: about
)
with hosts.fail_together():
    ExportHook(1, dtype)(run)
print("done", flush=True)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_processes_write_one_export(dtype, tmp_path):
    from soda_jax.tokens.text import ByteTokenizer

    ByteTokenizer().save(tmp_path / "tokenizer")
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {
        "XLA_FLAGS": xla_flags(2),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
    }
    codes, output = run_two(TWO, dtype, str(tmp_path), environment=environment, timeout=180)
    assert codes == [0, 0], output
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["step-7"]
    tensors = load_file(tmp_path / "exports" / "step-7" / "model.safetensors")
    assert {str(array.dtype) for array in tensors.values()} == {dtype}
