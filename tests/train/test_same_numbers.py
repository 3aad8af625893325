"""Invariant 7: one device and eight in any split give the same loss and the same gradients."""

import functools

import jax
import numpy as np
import pytest
from toys import random_params
from train_toys import LAYOUT, leaves, make_batch, make_model

from soda_jax.parallel.batches import local_rows, place_batch
from soda_jax.parallel.mesh import make_mesh
from soda_jax.train.state import shardings
from soda_jax.train.step import StepSettings, make_gradients

ROWS, LENGTH = 8, 32


@pytest.fixture(scope="module")
def batch():
    return make_batch(ROWS, LENGTH, shares=(0.9, 0.3, 1.0, 0.0))


def run_on(mesh, batch, accumulate=1):
    model = make_model()
    settings = StepSettings(
        len(LAYOUT.class_names), 2, accumulate=accumulate, z_loss=1e-2, loss_chunk=64
    )
    where = shardings(model.abstract, model.axes, mesh)
    params = jax.device_put(random_params(model), where)
    rows = local_rows(mesh, ROWS)
    placed = place_batch({k: v[rows] for k, v in batch.items()}, rows, mesh, ROWS)
    function = jax.jit(make_gradients(model, settings, mesh), out_shardings=(where, None))
    gradients, sums = function(params, placed)
    return params, gradients, sums


@pytest.fixture(scope="module")
def alone(batch):
    _, gradients, sums = run_on(make_mesh({}, jax.devices()[:1]), batch)
    assert float(sums["loss"]) > 3.0 and float(sums["count"].sum()) == batch["loss_mask"].sum()
    return leaves(gradients), leaves(sums)


@pytest.mark.parametrize(
    ("axes", "accumulate"),
    [
        ({"fsdp": 8}, 1),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 2),
        ({"data": 2, "sequence": 4}, 1),
        ({"fsdp": 2, "sequence": 2, "tensor": 2}, 1),
    ],
)
def test_invariant_7_eight_devices_give_the_numbers_of_one(alone, batch, axes, accumulate):
    mesh = make_mesh(axes)
    params, gradients, sums = run_on(mesh, batch, accumulate)
    # The split is real: no device holds the whole of what the axes split.
    if axes.get("fsdp", 1) > 1 or axes.get("tensor") == 2:
        gate = params["layers"]["gate"]
        assert gate.addressable_shards[0].data.size < gate.size
    gradients_alone, sums_alone = alone
    for name, value in leaves(sums).items():
        np.testing.assert_allclose(value, sums_alone[name], rtol=2e-6, atol=1e-5, err_msg=name)
    for name, value in leaves(gradients).items():
        wanted = gradients_alone[name]
        scale = np.abs(wanted).max()
        assert scale > 1e-4, name
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=2e-6 * scale, err_msg=name)


def test_invariant_7_initial_weights_do_not_depend_on_the_mesh():
    model = make_model()
    made = []
    for mesh in (make_mesh({}, jax.devices()[:1]), make_mesh({"fsdp": 4, "tensor": 2})):
        where = shardings(model.abstract, model.axes, mesh)
        made.append(leaves(jax.jit(functools.partial(model.init, 0), out_shardings=where)()))
    for name, value in made[0].items():
        np.testing.assert_array_equal(value, made[1][name], err_msg=name)
