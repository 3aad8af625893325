"""Weights fetched from devices equal the parameters."""

import os
from pathlib import Path

import jax
import pytest
from live_checks import check_weights
from toys import run_two, xla_flags

from soda_jax.convert import hook

MESHES = [
    {"data": 1},
    {"fsdp": 8},
    {"tensor": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
]
TWO = """
import sys
port, number = sys.argv[1], int(sys.argv[2])
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
from live_checks import check_weights
for axes in ({"fsdp": 4}, {"data": 2, "tensor": 2}):
    check_weights(axes)
print("agreed", flush=True)
"""


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_weights_of_any_mesh_are_the_parameters_bit_for_bit(axes):
    check_weights(axes, jax.devices()[: 1 if axes == {"data": 1} else 8])


def test_the_head_of_a_tied_model_is_its_embedding():
    check_weights({"data": 1}, jax.devices()[:1], tie_embeddings=True)


def test_many_rows_are_fetched_in_pieces_by_one_program(monkeypatch):
    monkeypatch.setattr(hook, "ROWS", 7)
    weights = check_weights({"fsdp": 2, "tensor": 4})
    # One program for each block and one for the final norm, for any range of rows.
    assert weights._rows._cache_size() == 3


def test_weights_of_two_processes_are_the_parameters_in_both():
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    environment = {
        "PYTHONPATH": paths,
        "XLA_FLAGS": xla_flags(2),
    }
    codes, output = run_two(TWO, environment=environment, timeout=120)
    assert codes == [0, 0] and all("agreed" in text for text in output), output
