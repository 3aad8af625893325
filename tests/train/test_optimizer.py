"""Cautious AdamW with AdamC against its formulas, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_toys import leaves

from soda_jax.schema import OptimizerConfig
from soda_jax.train.optimizer import decay_mask, make_optimizer
from soda_jax.train.schedules import make_schedule

STEPS = 12
UNDECAYED = {
    "embedding_first", "embedding_groups", "final_norm", "layers.attention_norm",
    "layers.mlp_norm", "layers.query_norm", "layers.key_norm",
}  # fmt: skip


def settings(**changes):
    common = {"peak_lr": 0.02, "weight_decay": 0.3, "beta1": 0.9, "beta2": 0.8, "eps": 1e-6}
    return OptimizerConfig(**common | changes)


def reference(start, gradients, options):
    """θ after each step, f64, from the formulas of SODA's training section."""
    rate_of = make_schedule(options, STEPS)
    theta = {name: value.astype(float) for name, value in start.items()}
    m = {name: np.zeros_like(value) for name, value in theta.items()}
    v = {name: np.zeros_like(value) for name, value in theta.items()}
    history = []
    for t, step_gradients in enumerate(gradients):
        lr = float(rate_of(t))
        for name, g in step_gradients.items():
            g = g.astype(float)
            m[name] = options.beta1 * m[name] + (1 - options.beta1) * g
            v[name] = options.beta2 * v[name] + (1 - options.beta2) * g**2
            m_hat = m[name] / (1 - options.beta1 ** (t + 1))
            v_hat = v[name] / (1 - options.beta2 ** (t + 1))
            u = m_hat / (np.sqrt(v_hat) + options.eps)
            if options.cautious:
                mask = g * u > 0
                u = u * mask / (mask.mean() + options.eps)
            wd = 0.0 if name in UNDECAYED else options.weight_decay * lr / options.peak_lr
            theta[name] = theta[name] - lr * (u + wd * theta[name])
        history.append({name: value.copy() for name, value in theta.items()})
    return history


@pytest.fixture(scope="module")
def gradients(params):
    """Gradients of twelve steps that change sign often, so that caution matters."""
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.normal(0.1, 1.0, p.shape), jnp.float32), params)
        for _ in range(STEPS)
    ]


@pytest.mark.parametrize(
    "changes", [{}, {"cautious": False}, {"schedule": "cosine", "weight_decay": 0.0}]
)
def test_steps_follow_the_formulas_of_the_paper(params, gradients, changes):
    options = settings(**changes)
    optimizer, _ = make_optimizer(options, STEPS, params)
    update = jax.jit(lambda g, s, p, t: optimizer.update(g, s, p, step=t))
    expected = reference(leaves(params), [leaves(g) for g in gradients], options)
    state, theta = optimizer.init(params), params
    for step, gradient in enumerate(gradients):
        updates, state = update(gradient, state, theta, step)
        theta = jax.tree.map(jnp.add, theta, updates)
        found = leaves(theta)
        for name, value in expected[step].items():
            np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    # The run did move: the agreement above is not that of standing still.
    moved = leaves(jax.tree.map(lambda a, b: jnp.abs(a - b).mean(), theta, params))
    assert all(value > 1e-2 for value in moved.values())


def test_caution_averages_over_the_stacked_layers_as_one_tensor(params):
    """Where layer 0's updates are all masked, layer 1's are scaled by the share of both."""
    options = settings(weight_decay=0.0, warmup_fraction=0.0, decay_fraction=0.0)
    optimizer, _ = make_optimizer(options, STEPS, params)
    shape = params["layers"]["gate"].shape
    first = jnp.ones(shape)
    # After a large step up, a small step down in layer 0 leaves its update pointing up: masked.
    second = jnp.stack([jnp.full(shape[1:], -1e-3), jnp.ones(shape[1:])])
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = optimizer.init(params)
    for step, gradient in enumerate((first, second)):
        tree = {**zeros, "layers": {**zeros["layers"], "gate": gradient}}
        updates, state = optimizer.update(tree, state, params, step=step)
    change = np.asarray(updates["layers"]["gate"])
    assert not change[0].any()
    np.testing.assert_allclose(change[1], -options.peak_lr / 0.5, rtol=1e-4)


def test_decay_spares_norms_and_token_embedding_but_not_the_head(model):
    found = leaves(decay_mask(model.abstract))
    assert {name for name, decayed in found.items() if not decayed} == UNDECAYED
    assert {"head_first", "head_groups", "layers.query"} < {n for n, d in found.items() if d}


def test_corrected_decay_is_proportional_to_the_square_of_the_learning_rate(params):
    options = settings(warmup_fraction=0.5, decay_fraction=0.0)
    optimizer, schedule = make_optimizer(options, STEPS, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for step in (0, 2, 4, 8):
        updates, _ = optimizer.update(zeros, optimizer.init(params), params, step=step)
        expected = -(float(schedule(step)) ** 2) / options.peak_lr * options.weight_decay
        ratio = np.asarray(updates["head_first"]) / np.asarray(params["head_first"])
        np.testing.assert_allclose(ratio, expected, rtol=1e-4, atol=1e-12)
        assert not np.asarray(updates["embedding_first"]).any()
