"""Gradients of one batch on any mesh, and whether they are those of one device."""

import jax
import numpy as np
from toys import random_params
from train_toys import LAYOUT, leaves, make_batch, make_model

from soda_jax.parallel.batches import local_rows, place_batch
from soda_jax.parallel.mesh import make_mesh
from soda_jax.schema import ModelConfig, OptimizerConfig, RunConfig
from soda_jax.train.program import sets_of_head
from soda_jax.train.state import shardings
from soda_jax.train.step import make_gradients

ROWS, LENGTH = 8, 32


def toy_batch():
    return make_batch(ROWS, LENGTH, shares=(0.9, 0.3, 1.0, 0.0))


def gradients_on(mesh, batch, accumulation=1, head="full"):
    """Parameters, gradients and sums of `batch` on `mesh`; every process passes the whole batch."""
    model = make_model()
    config = RunConfig(
        gradient_accumulation=accumulation,
        loss_chunk=64,
        optimizer=OptimizerConfig(z_loss=1e-2),
        model=ModelConfig(head=head, full_every=5),
    )
    where = shardings(model.abstract, model.axes, mesh)
    params = jax.tree.map(
        lambda value, sharding: jax.make_array_from_callback(
            value.shape, sharding, np.asarray(value).__getitem__
        ),
        random_params(model),
        where,
    )
    rows = local_rows(mesh, ROWS)
    placed = place_batch({k: v[rows] for k, v in batch.items()}, rows, mesh, ROWS)
    gradients_of = make_gradients(
        model, config, mesh, classes=len(LAYOUT.class_names), sources=2,
        legal=sets_of_head(config.model, LAYOUT),
    )  # fmt: skip
    function = jax.jit(gradients_of, out_shardings=(where, None))
    gradients, sums = function(params, placed)
    return params, gradients, sums


def on_one_device(batch, head="full"):
    """Gradients and sums by dotted name, from the first device of this process."""
    mesh = make_mesh({}, jax.local_devices()[:1])
    _, gradients, sums = gradients_on(mesh, batch, head=head)
    assert float(sums["loss"]) > 1.0 and float(sums["count"].sum()) == batch["loss_mask"].sum()
    return leaves(gradients), leaves(sums)


def check_same_numbers(axes, accumulate, batch, single, head="full"):
    """Asserts that a mesh gives the numbers `single`, for the shards of this process."""
    params, gradients, sums = gradients_on(make_mesh(axes), batch, accumulate, head)
    # The split is real: no device holds the whole of what the axes split.
    if axes.get("fsdp", 1) > 1 or axes.get("tensor", 1) > 1:
        gate = params["layers"]["gate"]
        assert gate.addressable_shards[0].data.size < gate.size
    for name, value in pieces(sums):
        if name.startswith("text_positions_"):  # per shard of the batch
            continue
        where, got = value
        wanted = single[1][name][where]
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-5, err_msg=name)
    for name, value in pieces(gradients):
        where, got = value
        wanted = single[0][name]
        scale = np.abs(wanted).max()
        assert scale > 1e-4, name
        np.testing.assert_allclose(got, wanted[where], rtol=1e-4, atol=2e-6 * scale, err_msg=name)


def pieces(tree):
    """(dotted name, (index, values)) of every shard that this process holds."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = ".".join(str(getattr(e, "key", getattr(e, "name", e))) for e in path)
        for shard in leaf.addressable_shards:
            yield name, (shard.index, np.asarray(shard.data))
