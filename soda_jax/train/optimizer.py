"""Cautious AdamW with AdamC weight decay, as small optax transformations.

The learning rate follows the number of the training step, which is handed to `update` as `step`: a
skipped update leaves the optimizer's state untouched but not the schedule.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from soda_jax.train.schedules import make_schedule


def cautious(inner: optax.GradientTransformation, eps: float) -> optax.GradientTransformation:
    """Keeps only the parts of an update that agree in sign with the gradient.

    u ← u · mask / (mean(mask) + eps), mask = (g · u > 0), with the mean over each stored tensor: the
    layers of the scan are stacked in one (SODA, section on training; Cautious Optimizers, 2411.16085).
    """

    def update(gradients, state, params=None):
        updates, state = inner.update(gradients, state, params)

        def mask(update: jax.Array, gradient: jax.Array) -> jax.Array:
            agrees = update * gradient > 0
            return jnp.where(agrees, update, 0.0) / (jnp.mean(agrees, dtype=jnp.float32) + eps)

        return jax.tree.map(mask, updates, gradients), state

    return optax.GradientTransformation(inner.init, update)


def add_corrected_decay(
    weight_decay: float, schedule: optax.Schedule, peak: float, decayed: Any
) -> optax.GradientTransformationExtraArgs:
    """Adds wd_t · θ with wd_t = weight_decay · lr_t / lr_max (AdamC, 2506.02285).

    Args:
      weight_decay: the decay at the peak of the schedule.
      schedule: learning rate of a step.
      peak: the largest learning rate.
      decayed: pytree of bools like the parameters, True where decay applies.
    """

    def update(updates, state, params=None, *, step, **extra):
        rate = weight_decay * schedule(step) / peak
        updates = jax.tree.map(
            lambda u, p, use: u + rate * p if use else u, updates, params, decayed
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_step_schedule(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies by −schedule(step)."""

    def update(updates, state, params=None, *, step, **extra):
        rate = schedule(step)
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: not on norms, not on the token embedding; the head is decayed."""

    def applies(path, _):
        names = [entry.key for entry in path]
        return not any("norm" in name or name.startswith("embedding") for name in names)

    return jax.tree_util.tree_map_with_path(applies, params)


def make_optimizer(
    settings: Any, steps: int, params: Any
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """The optimizer of `config.optimizer` and its schedule; clipping happens in the step.

    Args:
      settings: `config.optimizer`.
      steps: length of the run.
      params: the parameters or their abstract shapes, for the decay mask.
    """
    schedule = make_schedule(settings, steps)
    adam = optax.scale_by_adam(settings.beta1, settings.beta2, settings.eps)
    chain = optax.chain(
        cautious(adam, settings.eps) if settings.cautious else adam,
        add_corrected_decay(settings.weight_decay, schedule, settings.peak, decay_mask(params)),
        scale_by_step_schedule(schedule),
    )
    return chain, schedule
