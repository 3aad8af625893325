"""Learning-rate schedules as functions of the step.

Every schedule is a plain `optax.Schedule`: step (int) -> learning rate (float). Its lengths may be
numbers or scalars in a jitted function, so that runs of different lengths share a compiled step.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from soda_jax.errors import UserError
from soda_jax.schema import OptimizerConfig


class Lengths(NamedTuple):
    """Lengths of a schedule in steps: ints, or int32 scalars in a jitted function.

    Attributes:
      steps: length of the run.
      warmup: steps of linear warmup from 0.
      decay: steps of linear decay to 0, at the end; not used by the cosine schedule.
    """

    steps: Any
    warmup: Any
    decay: Any = 0


def lengths_of(config: OptimizerConfig, steps: int) -> Lengths:
    """Returns the lengths of the schedule of a run of `steps` steps, as ints.

    Raises:
      UserError: if warmup and decay overlap, a fraction is negative, or the warmup of a cosine
        schedule leaves no step after it.
    """
    warmup = round(config.warmup_fraction * steps)
    if config.schedule == "cosine":
        if not 0 <= warmup < steps:
            raise UserError(
                f"optimizer.warmup_fraction {config.warmup_fraction} must be at least 0 and leave at "
                "least one step after the warmup"
            )
        return Lengths(steps, warmup)
    fractions = (config.warmup_fraction, config.decay_fraction)
    if min(fractions) < 0 or sum(fractions) > 1:
        raise UserError(
            f"optimizer.warmup_fraction {fractions[0]} and optimizer.decay_fraction {fractions[1]} "
            "must not be negative, and their sum must be at most 1"
        )
    return Lengths(steps, warmup, round(config.decay_fraction * steps))


def warmup_stable_decay(peak_lr: Any, lengths: Lengths) -> optax.Schedule:
    """Returns linear warmup, constant, linear decay to zero (SODA, suite training table).

    Args:
      peak_lr: learning rate of the stable phase, a float or an f32 scalar.
      lengths: lengths of the phases.
    """

    def schedule(step: Any) -> Any:
        # A phase of no steps has the factor 1: 0 / 0 must not occur.
        rise = jnp.where(lengths.warmup > 0, step / jnp.maximum(lengths.warmup, 1), 1.0)
        left = (lengths.steps - step) / jnp.maximum(lengths.decay, 1)
        fall = jnp.where(lengths.decay > 0, left, 1.0)
        return peak_lr * jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)

    return schedule


def warmup_cosine(peak_lr: Any, lengths: Lengths) -> optax.Schedule:
    """Returns linear warmup, then half a cosine to zero (SODA, speech-to-speech translation).

    Args:
      peak_lr: learning rate after the warmup, a float or an f32 scalar.
      lengths: lengths of the run and of the warmup.
    """

    def schedule(step: Any) -> Any:
        rise = step / jnp.maximum(lengths.warmup, 1)
        done = (step - lengths.warmup) / (lengths.steps - lengths.warmup)
        fall = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
        return peak_lr * jnp.where(step < lengths.warmup, rise, fall)

    return schedule


def make_schedule(config: OptimizerConfig, steps: int | Lengths) -> optax.Schedule:
    """Returns the schedule of the `optimizer` settings of a run.

    Args:
      config: the settings.
      steps: length of the run, or all lengths.
    """
    lengths = steps if isinstance(steps, Lengths) else lengths_of(config, steps)
    make = warmup_cosine if config.schedule == "cosine" else warmup_stable_decay
    return make(config.peak_lr, lengths)
