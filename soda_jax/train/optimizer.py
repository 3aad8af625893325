"""Cautious AdamW with AdamC weight decay, as small optax transformations.

`update` has a keyword argument `step`, the training step, from which it computes the learning rate.
A skipped update therefore leaves the optimizer state unchanged but still advances the schedule.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from soda_jax.registry import OPTIMIZERS
from soda_jax.schema import OptimizerConfig
from soda_jax.train.schedules import Lengths, make_schedule

# Parameters that the paper stores as one matrix: name → mask of the non-padding rows, see
# `soda_jax.model.decoder.stored_matrices`.
Matrix = Mapping[str, np.ndarray]


def cautious(
    inner: optax.GradientTransformation, eps: float, matrices: Sequence[Matrix] = ()
) -> optax.GradientTransformation:
    """Keeps only the elements of an update that agree in sign with the gradient.

    u ← u · mask / (mean(mask) + eps), mask = (g · u > 0) (SODA, section on training; Cautious
    Optimizers, arXiv 2411.16085). The mean is taken over each matrix as the paper stores it: the
    scanned layers are stacked in one matrix, and the two vocabulary blocks share one mean over
    their valid rows.

    Args:
      inner: the transformation that computes the update u.
      eps: constant added to the mean.
      matrices: groups of top-level parameters, one matrix each; every other array has a separate
        mean.
    """

    def update(gradients, state, params=None):
        updates, state = inner.update(gradients, state, params)
        agrees = jax.tree.map(lambda u, g: u * g > 0, updates, gradients)
        updates = jax.tree.map(
            lambda u, agree, share: jnp.where(agree, u, 0.0) / (share + eps),
            updates,
            agrees,
            _fractions(agrees, matrices),
        )
        return updates, state

    return optax.GradientTransformation(inner.init, update)


def _fractions(agrees: Any, matrices: Sequence[Matrix]) -> Any:
    """Returns, for each array, the fraction of True values in its matrix: a tree of f32 scalars."""
    shares = jax.tree.map(lambda x: _count(x) / max(x.size, 1), agrees)
    for matrix in matrices:
        parts = [agrees[name] & valid[..., None] for name, valid in matrix.items()]
        size = sum(
            int(valid.sum()) * part.shape[-1]
            for valid, part in zip(matrix.values(), parts, strict=True)
        )
        shares = {**shares, **dict.fromkeys(matrix, sum(map(_count, parts)) / size)}
    return shares


def _count(flags: jax.Array) -> jax.Array:
    """Returns the number of True elements, f32.

    An f32 sum of ones saturates at 2²⁴. An int32 sum is exact and equal on any mesh but overflows at
    2³¹, so in larger arrays each slice along the first axis is counted separately.
    """
    axes = None if flags.size < 2**31 else tuple(range(1, flags.ndim))
    return jnp.sum(jnp.sum(flags, axes, dtype=jnp.int32).astype(jnp.float32))


def add_corrected_decay(
    weight_decay: float, schedule: optax.Schedule, peak: float, decayed: Any
) -> optax.GradientTransformationExtraArgs:
    """Adds wd_t · θ with wd_t = weight_decay · lr_t / lr_max (AdamC, arXiv 2506.02285).

    Args:
      weight_decay: weight decay at the peak learning rate.
      schedule: learning rate as a function of the step.
      peak: peak learning rate, lr_max.
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
    """Multiplies the updates by −schedule(step)."""

    def update(updates, state, params=None, *, step, **extra):
        rate = schedule(step)
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def decay_mask(params: Any) -> Any:
    """Returns a tree of bools that is False for norms and the token embedding, True otherwise."""

    def applies(path, _):
        names = [entry.key for entry in path]
        return not any("norm" in name or name.startswith("embedding") for name in names)

    return jax.tree_util.tree_map_with_path(applies, params)


@OPTIMIZERS.register("adamw")
def adamw(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    params: Any,
    matrices: Sequence[Matrix] = (),
) -> optax.GradientTransformationExtraArgs:
    """Returns (cautious) AdamW with AdamC weight decay.

    Args:
      config: the `optimizer` settings of a run, see `make_optimizer`.
      schedule: learning rate as a function of the step.
      params: the parameters or their abstract shapes, for the decay mask.
      matrices: parameters that form one matrix, see `ModelFunctions.matrices`.
    """
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    return optax.chain(
        cautious(adam, config.eps, matrices) if config.cautious else adam,
        add_corrected_decay(config.weight_decay, schedule, config.peak_lr, decay_mask(params)),
        scale_by_step_schedule(schedule),
    )


def make_optimizer(
    config: OptimizerConfig, steps: int | Lengths, params: Any, matrices: Sequence[Matrix] = ()
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """Returns the registered optimizer `config.name` and its schedule, without gradient clipping.

    Args:
      config: the `optimizer` settings of a run; in a jitted function, `peak_lr` may be an f32 scalar.
      steps: length of the run, or the lengths of its schedule.
      params: the parameters or their abstract shapes.
      matrices: parameters that form one matrix, see `ModelFunctions.matrices`.

    Raises:
      UserError: for an unknown name or an invalid schedule.
    """
    schedule = make_schedule(config, steps)
    make = OPTIMIZERS.get(config.name, "optimizer.name")
    return make(config, schedule, params, matrices), schedule
