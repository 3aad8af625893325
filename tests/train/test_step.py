"""One step: accumulation, clipping, skipping, the loss vector."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_toys import LAYOUT, leaves, make_batch

from soda_jax.data.loss_vector import loss_vector
from soda_jax.parallel.mesh import make_mesh
from soda_jax.schema import OptimizerConfig, RunConfig, SafetyConfig
from soda_jax.train.optimizer import make_optimizer
from soda_jax.train.state import make_state
from soda_jax.train.step import make_gradients, make_train_step

OPTIONS = OptimizerConfig(peak_lr=0.01, warmup_fraction=0.0, z_loss=1e-2)
CONFIG = RunConfig(loss_chunk=32, optimizer=OPTIONS, safety=SafetyConfig(spike_factor=0.0))
SIZES = {"classes": len(LAYOUT.class_names), "sources": 2}
SHAPE = (8, 32)
# Rows of one micro-batch keep most of their targets, those of the other few.
UNEVEN = (0.95, 0.05)


@pytest.fixture(scope="module")
def one_device():
    return make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def gradients_of(model, one_device):
    """gradients_of(accumulate): the jitted function, made once for each."""

    @functools.lru_cache
    def make(accumulate):
        config = dataclasses.replace(CONFIG, gradient_accumulation=accumulate)
        return jax.jit(make_gradients(model, config, one_device, **SIZES))

    return make


@pytest.fixture(scope="module")
def batch():
    return make_batch(*SHAPE, shares=UNEVEN)


def test_accumulation_is_weighted_by_tokens(gradients_of, params, batch):
    whole, cut = (gradients_of(n)(params, batch) for n in (1, 2))
    counts = batch["loss_mask"].reshape(4, 2, -1).sum((0, 2))
    assert counts[0] > 8 * counts[1] > 0  # the micro-batches are far from even
    for name, value in leaves(whole[1]).items():
        np.testing.assert_allclose(leaves(cut[1])[name], value, rtol=1e-5, err_msg=name)
    for name, value in leaves(whole[0]).items():
        np.testing.assert_allclose(leaves(cut[0])[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    # The mean of the micro-batches' means is something else.
    halves = [
        gradients_of(1)(params, {name: np.tile(x[i::2], (2,) + (1,) * (x.ndim - 1))
                                 for name, x in batch.items()})[1]["loss"]
        for i in range(2)
    ]  # fmt: skip
    assert abs(float(sum(halves)) / 2 - float(whole[1]["loss"])) > 1e-4


def test_invariant_5_loss_vector_equals_a_direct_computation(gradients_of, model, params, batch):
    _, sums = gradients_of(1)(params, batch)
    names, sources = LAYOUT.class_names, ("speech", "text")
    found = loss_vector(np.asarray(sums["nll"]), np.asarray(sums["count"]), names, sources)

    def all_logits(params, batch):
        decoder = model.bind(params)
        return decoder.logits(decoder(batch["tokens"], batch["segment_ids"], batch["positions"]))

    logits = np.asarray(jax.jit(all_logits)(params, batch), float)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    by_name: dict[str, list[float]] = {}
    markers = {LAYOUT.bos, LAYOUT.eos, *range(LAYOUT.text_size, LAYOUT.audio_base)}
    joints = 0
    for row in range(SHAPE[0]):
        tokens, source = batch["tokens"][row].tolist(), sources[row % 2]
        for index, target in enumerate(tokens[1:]):
            if not batch["loss_mask"][row, index]:
                continue
            ends = np.cumsum(LAYOUT.codebook_sizes) + LAYOUT.audio_base
            kind = "marker" if target in markers else "text"
            if target >= LAYOUT.audio_base:
                kind = names[1 + int(np.searchsorted(ends, target, side="right"))]
            joints += tokens[index] == LAYOUT.eos and target == LAYOUT.bos and kind == "marker"
            for name in (kind, "all", f"{source}/all", f"{source}/{kind}"):
                by_name.setdefault(f"loss/{name}", []).append(-log_p[row, index, target])
    assert found.keys() == by_name.keys() and len(found) > 12
    for name, nats in by_name.items():
        assert found[name] == pytest.approx(np.mean(nats), rel=1e-5), name
    assert joints > 0  # EOS → BOS of the next document is a target of the marker class
    # The scalar is the token mean of the classes; the training loss has the z-loss on top.
    counts = np.asarray(sums["count"])
    means = [found[f"loss/{name}"] * counts[:, i].sum() for i, name in enumerate(names)]
    assert found["loss/all"] == pytest.approx(sum(means) / counts.sum(), rel=1e-6)
    z_loss = OPTIONS.z_loss * float(sums["log_z_squared"]) / counts.sum()
    assert float(sums["loss"]) == pytest.approx(found["loss/all"] + z_loss, rel=1e-5)


def test_the_last_position_of_a_window_has_no_target(gradients_of, params, batch):
    changed = {**batch, "tokens": batch["tokens"].copy()}
    left = gradients_of(1)(params, batch)[1]
    # This changes the result if the first token becomes the target of the last position.
    full = {**changed, "loss_mask": np.zeros_like(batch["loss_mask"])}
    nothing_left = gradients_of(1)(params, full)
    assert float(left["count"].sum()) == batch["loss_mask"].sum() > 0
    assert not batch["loss_mask"][:, -1].any()
    assert float(nothing_left[1]["loss"]) == 0.0
    assert not any(value.any() for value in leaves(nothing_left[0]).values())


CLIP = 1.0


@pytest.fixture(scope="module")
def start(model, params):
    optimizer, _ = make_optimizer(OPTIONS, 100, model.abstract)
    shapes = jax.eval_shape(lambda: make_state(model, optimizer, 0))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes) | {"params": params}


@pytest.fixture(scope="module")
def step_with(model, one_device):
    """step_with(max_grad_norm, **safety): the jitted step."""

    def make(max_grad_norm, **safety):
        options = dataclasses.replace(OPTIONS, max_grad_norm=max_grad_norm)
        optimizer, schedule = make_optimizer(options, 100, model.abstract)
        safety = dataclasses.replace(CONFIG.safety, **safety)
        config = dataclasses.replace(CONFIG, optimizer=options, safety=safety)
        return jax.jit(make_train_step(model, optimizer, schedule, config, one_device, **SIZES))

    return make


@pytest.fixture(scope="module")
def clipping_step(step_with):
    return step_with(CLIP)


@pytest.fixture(scope="module")
def watching_step(step_with):
    return step_with(0.0, spike_factor=5.0, spike_after=2)


def test_the_gradient_is_clipped_to_the_global_norm(clipping_step, watching_step, start, batch):
    large, small = start["params"], dict(start["params"])
    small["final_norm"] = small["final_norm"] * 1e-2
    norms = []
    for params in (large, small):
        plain, metrics = watching_step(start | {"params": params}, batch)
        clipped, metrics_clipped = clipping_step(start | {"params": params}, batch)
        norms.append(float(metrics["gradient_norm"]))
        assert float(metrics_clipped["gradient_norm"]) == pytest.approx(norms[-1], rel=1e-5)
        moments = [float(optax.global_norm(first_moment(state))) for state in (plain, clipped)]
        expected = [(1 - OPTIONS.beta1) * norm for norm in (norms[-1], min(norms[-1], CLIP))]
        assert moments == pytest.approx(expected, rel=1e-4)
    assert norms[1] < CLIP < norms[0]


def first_moment(state):
    (adam,) = [s for s in jax.tree.leaves(state["optimizer"], is_leaf=is_adam) if is_adam(s)]
    return adam.mu


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def assert_only_the_step_moved(before, after):
    old, new = leaves(before), leaves(after)
    assert old.keys() == new.keys()
    moved = {name for name in old if not np.array_equal(old[name], new[name])}
    assert moved == {"step", "skipped_in_a_row"}


def test_invariant_8_a_non_finite_gradient_changes_nothing_but_the_step(
    clipping_step, start, batch
):
    step = clipping_step
    state, _ = step(start, batch)
    # A parameter of one row that is not a number makes the whole gradient so.
    broken = {**state, "params": {**state["params"]}}
    broken["params"]["final_norm"] = state["params"]["final_norm"].at[0].set(jnp.nan)
    after, metrics = step(broken, batch)
    assert not np.isfinite(float(metrics["gradient_norm"]))
    assert_only_the_step_moved({**broken, "params": {}}, {**after, "params": {}})
    mended = {**after, "params": state["params"]}
    for name, value in leaves(broken["params"]).items():
        np.testing.assert_array_equal(leaves(after["params"])[name], value)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (1, 1)
    again, metrics = step(broken | {"skipped_in_a_row": after["skipped_in_a_row"]}, batch)
    assert int(metrics["skipped_in_a_row"]) == int(again["skipped_in_a_row"]) == 2
    # A good gradient is taken again, and counted.
    good, metrics = step(mended, batch)
    assert (int(metrics["skipped"]), int(good["skipped_in_a_row"])) == (0, 0)
    assert (int(good["step"]), int(good["accepted"])) == (3, 2)


def test_a_spiking_gradient_is_skipped_once_it_is_watched_for(
    watching_step, clipping_step, start, batch
):
    step = watching_step
    _, metrics = step(start, batch)
    usual = float(metrics["gradient_norm"])
    averages = {"accepted": jnp.int32(2), "gradient_norm_average": jnp.float32(usual / 4)}
    spiking = {"accepted": jnp.int32(2), "gradient_norm_average": jnp.float32(usual / 6)}
    early = {"accepted": jnp.int32(1), "gradient_norm_average": jnp.float32(usual / 6)}
    taken, _ = step(start | averages, batch)
    assert int(taken["accepted"]) == 3
    expected = 0.98 * usual / 4 + 0.02 * usual
    assert float(taken["gradient_norm_average"]) == pytest.approx(expected, rel=1e-5)
    skipped, metrics = step(start | spiking, batch)
    assert_only_the_step_moved(start | spiking, skipped)
    assert int(metrics["skipped"]) == 1
    not_yet, _ = step(start | early, batch)
    assert int(not_yet["accepted"]) == 2
    off, _ = clipping_step(start | spiking, batch)
    assert int(off["accepted"]) == 3


def test_the_learning_rate_follows_the_step_although_updates_were_skipped(
    clipping_step, start, batch
):
    schedule = make_optimizer(OPTIONS, 100, start["params"])[1]
    late = start | {"step": jnp.int32(95)}
    _, metrics = clipping_step(late, batch)
    assert float(metrics["learning_rate"]) == pytest.approx(float(schedule(95)))
    assert float(metrics["learning_rate"]) == pytest.approx(0.0025)
    assert float(metrics["parameter_norm"]) > 1.0
