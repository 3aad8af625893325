"""Invariant 7: one device and eight in any split give the same loss and the same gradients.

Two processes with four devices each are in test_several_processes.py.
"""

import functools

import jax
import numpy as np
import pytest
from mesh_toys import check_same_numbers, on_one_device, toy_batch
from train_toys import leaves, make_model

from soda_jax.parallel.mesh import make_mesh
from soda_jax.train.state import shardings


@pytest.fixture(scope="module")
def batch():
    return toy_batch()


@pytest.fixture(scope="module")
def single(batch):
    return on_one_device(batch)


@pytest.mark.parametrize(
    ("axes", "accumulate"),
    [
        ({"dcn": 8}, 1),
        ({"data": 8}, 1),
        ({"fsdp": 8}, 1),
        ({"sequence": 8}, 1),
        ({"tensor": 8}, 1),
        ({"dcn": 2, "fsdp": 2, "tensor": 2}, 2),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 2),
        ({"dcn": 2, "sequence": 4}, 1),
        ({"fsdp": 2, "sequence": 2, "tensor": 2}, 1),
    ],
    ids=lambda value: (
        "-".join(f"{k}{v}" for k, v in value.items()) if type(value) is dict else None
    ),
)
def test_invariant_7_eight_devices_give_the_numbers_of_one(single, batch, axes, accumulate):
    check_same_numbers(axes, accumulate, batch, single)


def test_invariant_7_initial_weights_do_not_depend_on_the_mesh():
    model = make_model()
    made = []
    for mesh in (
        make_mesh({}, jax.devices()[:1]),
        make_mesh({"fsdp": 4, "tensor": 2}),
        make_mesh({"dcn": 2, "data": 2, "tensor": 2}),
    ):
        where = shardings(model.abstract, model.axes, mesh)
        made.append(leaves(jax.jit(functools.partial(model.init, 0), out_shardings=where)()))
    for other in made[1:]:
        for name, value in made[0].items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)
