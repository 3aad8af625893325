"""Storing a vocabulary matrix as two padded blocks changes no number of a training step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, random_params
from train_toys import leaves

from soda_jax.model import DecoderConfig, ModelFunctions, RopeConfig, VocabularyBlocks
from soda_jax.parallel.batches import place_batch
from soda_jax.parallel.mesh import make_mesh
from soda_jax.schema import OptimizerConfig, RunConfig, SafetyConfig
from soda_jax.train.optimizer import make_optimizer
from soda_jax.train.state import make_state, shardings
from soda_jax.train.step import make_train_step

LAYOUTS = {
    "text padded from 1,028 to 1,280": VocabularyBlocks(1028, (16, 16)),
    "unequal codebooks": VocabularyBlocks(24, (40, 3, 17)),
    "both": VocabularyBlocks(1028, (12, 6, 9)),
    "no padding": VocabularyBlocks(24, (8, 8)),
    "one codebook": VocabularyBlocks(21, (5,)),
    "text only": VocabularyBlocks(1028, ()),
}
OPTIONS = OptimizerConfig(
    peak_lr=0.02, weight_decay=0.3, beta1=0.9, beta2=0.8, warmup_fraction=0.0, z_loss=1e-2
)
STEPS = 5


def make_model(blocks, tied=False):
    shape = {**SHAPE, "num_layers": 1}
    config = DecoderConfig(
        vocabulary=blocks,
        intermediate_size=32,
        rope=RopeConfig(theta=100.0, factor=1.0),
        tie_embeddings=tied,
        **shape,
    )
    return ModelFunctions(config)


def matrices(tree, blocks, tied):
    """The vocabulary matrices without padding, f64 `[ids, width]` by name."""
    found = {}
    for name in ("embedding",) if tied else ("embedding", "head"):
        first = np.asarray(tree[f"{name}_first"], float)
        groups = np.asarray(tree.get(f"{name}_groups", ()), float)
        codebooks = [groups[k, :size] for k, size in enumerate(blocks.groups)]
        found[name] = np.concatenate([first[: blocks.first_rows], *codebooks])
    return found


def padding_of(tree, blocks):
    """All values of the padding rows of a tree of parameters or gradients."""
    found = []
    for name, value in tree.items():
        if name.endswith("_first"):
            found.append(np.asarray(value)[blocks.first_rows :].ravel())
        elif name.endswith("_groups"):
            found += [np.asarray(value)[k, n:].ravel() for k, n in enumerate(blocks.groups)]
    return np.concatenate(found)


def sparse_gradients(params, seed):
    """Gradients whose signs change often; a share of the rows, another in each block, has none."""
    rng = np.random.default_rng(seed)

    def make(path, leaf):
        values = rng.normal(0.1, 1.0, leaf.shape)
        name = path[-1].key
        if name.startswith(("embedding", "head")):
            share = 0.2 if name.endswith("first") else 0.7
            values *= rng.random((*leaf.shape[:-1], 1)) < share
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(make, params)


def reference(start, gradients, decayed):
    """One matrix after Cautious AdamW with a constant learning rate, f64, from the formulas."""
    theta, m, v = start, np.zeros_like(start), np.zeros_like(start)
    for t, g in enumerate(gradients, 1):
        m = OPTIONS.beta1 * m + (1 - OPTIONS.beta1) * g
        v = OPTIONS.beta2 * v + (1 - OPTIONS.beta2) * g**2
        u = (m / (1 - OPTIONS.beta1**t)) / (np.sqrt(v / (1 - OPTIONS.beta2**t)) + OPTIONS.eps)
        mask = u * g > 0
        u = u * mask / (mask.mean() + OPTIONS.eps)
        theta = theta - OPTIONS.peak_lr * (u + decayed * OPTIONS.weight_decay * theta)
    return theta


def run_optimizer(model, params, gradients, mesh):
    """Parameters after all `gradients`, which are sharded over `mesh` as the training state is."""
    optimizer, _ = make_optimizer(OPTIONS, 100, params, model.matrices)
    where = shardings(params, model.axes, mesh)

    @jax.jit
    def update(gradient, state, params):
        updates, state = optimizer.update(gradient, state, params, step=0)
        return jax.tree.map(jnp.add, params, updates), state

    params = jax.device_put(params, where)
    state = jax.jit(optimizer.init)(params)
    for gradient in gradients:
        params, state = update(jax.device_put(gradient, where), state, params)
    return params


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("blocks", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_invariant_5_caution_takes_one_mean_over_the_valid_rows_of_both_blocks(blocks, tied):
    model = make_model(blocks, tied)
    params = random_params(model)
    # The gradients of padding rows are random, too: whatever is there does not count.
    gradients = [sparse_gradients(params, step) for step in range(STEPS)]
    found = run_optimizer(model, params, gradients, make_mesh({}, jax.devices()[:1]))
    start = matrices(params, blocks, tied)
    of_step = [matrices(gradient, blocks, tied) for gradient in gradients]
    for name, value in matrices(found, blocks, tied).items():
        wanted = reference(start[name], [g[name] for g in of_step], decayed=name == "head")
        change = wanted - start[name]
        np.testing.assert_allclose(value - start[name], change, rtol=1e-4, atol=2e-6, err_msg=name)
        assert np.abs(change).max() > 0.05


@pytest.mark.parametrize("axes", [{"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_invariant_7_caution_takes_the_same_mean_on_any_mesh(axes):
    blocks = LAYOUTS["both"]
    model = make_model(blocks)
    params = random_params(model)
    gradients = [sparse_gradients(params, step) for step in range(3)]
    one = leaves(run_optimizer(model, params, gradients, make_mesh({}, jax.devices()[:1])))
    many = leaves(run_optimizer(model, params, gradients, make_mesh(axes)))
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


class OneBlock(VocabularyBlocks):
    """All ids in one block without padding: the matrix as the paper stores it."""

    padded_first = property(lambda self: self.first_rows)


def run_steps(model, params, axes, accumulation=1):
    """State and metrics of three real steps, from `params`."""
    mesh = make_mesh(axes) if axes else make_mesh({}, jax.devices()[:1])
    optimizer, schedule = make_optimizer(OPTIONS, 100, model.abstract, model.matrices)
    config = RunConfig(
        batch_size=8,
        gradient_accumulation=accumulation,
        loss_chunk=24,
        optimizer=OPTIONS,
        safety=SafetyConfig(spike_factor=0.0),
    )
    shapes = jax.eval_shape(lambda: make_state(model, optimizer, 0))
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes) | {"params": params}
    state = jax.device_put(state, shardings(state, model.axes, mesh))
    train_step = make_train_step(model, optimizer, schedule, config, mesh, classes=1, sources=1)
    step = jax.jit(train_step)
    history = []
    for number in range(3):
        batch = make_batch(model.config.vocabulary.size, number)
        placed = place_batch(batch, np.arange(8), mesh, 8) if axes else batch
        state, metrics = step(state, placed)
        history.append({name: np.asarray(value) for name, value in metrics.items()})
    return state, history


def make_batch(size, seed):
    """Windows of ids of which the later ones are frequent, as codes are."""
    rng = np.random.default_rng(seed)
    shape = (8, 16)
    tokens = np.where(rng.random(shape) < 0.7, size - rng.integers(1, 20, shape), rng.integers(0, 60, shape))  # fmt: skip
    return {
        "tokens": tokens.astype(np.int32),
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(16, dtype=np.int32), shape),
        "target_class": np.zeros(shape, np.int8),
        "loss_mask": rng.random(shape) < np.linspace(0.1, 1.0, 8)[:, None],
        "source": np.zeros(8, np.int32),
    }


@pytest.mark.parametrize(
    ("tied", "axes", "accumulate"),
    [(False, {"data": 2, "fsdp": 2, "tensor": 2}, 2), (True, None, 1)],
    ids=["untied, on a mesh", "tied"],
)
def test_invariant_1_padding_and_blocks_change_no_number_of_a_step(tied, axes, accumulate):
    blocks = LAYOUTS["both"]
    stored, plain = make_model(blocks, tied), make_model(OneBlock(blocks.size, ()), tied)
    params = random_params(stored)
    for name, valid in {k: v for matrix in stored.matrices for k, v in matrix.items()}.items():
        params[name] = jnp.where(valid[..., None], params[name], 0.0)
    whole = {name: value for name, value in params.items() if not name.startswith(("emb", "head"))}
    for name, value in matrices(params, blocks, tied).items():
        whole[f"{name}_first"] = jnp.asarray(value, jnp.float32)
    state, history = run_steps(stored, params, axes, accumulate)
    wanted_state, wanted_history = run_steps(plain, whole, None)
    for found, wanted in zip(history, wanted_history, strict=True):
        for name in ("loss", "gradient_norm", "parameter_norm", "log_z_squared", "nll", "count"):
            np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, err_msg=name)
        assert wanted["gradient_norm"] > 1.0  # clipped
    found, wanted = state["params"], wanted_state["params"]
    wanted_matrices = matrices(wanted, OneBlock(blocks.size, ()), tied)
    for name, value in matrices(found, blocks, tied).items():
        np.testing.assert_allclose(value, wanted_matrices[name], atol=2e-5, err_msg=name)
    for name, value in leaves(wanted["layers"]).items():
        np.testing.assert_allclose(leaves(found["layers"])[name], value, atol=2e-5, err_msg=name)
    # Parameters, moments and so gradients of padding rows are exactly 0.
    for tree in (found, *moments(state)):
        assert not padding_of(tree, blocks).any()


def moments(state):
    is_dict = lambda node: isinstance(node, dict) and "embedding_first" in node  # noqa: E731
    found = [x for x in jax.tree.leaves(state["optimizer"], is_leaf=is_dict) if is_dict(x)]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_initial_padding_is_zero_and_each_block_has_the_deviation_of_the_matrix(tied):
    blocks = VocabularyBlocks(1028, (300, 100, 250))
    config = dataclasses.replace(make_model(blocks, tied).config, hidden_size=64)
    params = jax.jit(ModelFunctions(config).init, static_argnums=0)(5)
    assert not padding_of(params, blocks).any()
    for name, value in matrices(params, blocks, tied).items():
        deviation = {"embedding": 1 / 64, "head": 64**-0.5}[name] * 0.98658  # cut at ±3
        for rows in (value[:1028], value[1028:]):
            assert rows.std() == pytest.approx(deviation, rel=0.02)
            assert (rows != 0).all()
