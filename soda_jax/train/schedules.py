"""Learning-rate schedules as functions of the step.

Every schedule is a plain `optax.Schedule`: step (int) -> learning rate (float).
"""

import optax

from soda_jax.errors import UserError
from soda_jax.schema import OptimizerConfig


def warmup_stable_decay(
    peak_lr: float, steps: int, *, warmup_fraction: float = 0.10, decay_fraction: float = 0.20
) -> optax.Schedule:
    """Returns linear warmup, constant, linear decay to zero (SODA, suite training table).

    Args:
      peak_lr: learning rate of the stable phase.
      steps: length of the run in optimizer steps.
      warmup_fraction: fraction of `steps` spent warming up.
      decay_fraction: fraction of `steps` spent decaying, at the end.

    Raises:
      UserError: if warmup and decay overlap, or a fraction is negative.
    """
    if warmup_fraction < 0 or decay_fraction < 0 or warmup_fraction + decay_fraction > 1:
        raise UserError(
            f"optimizer.warmup_fraction {warmup_fraction} and optimizer.decay_fraction "
            f"{decay_fraction} must not be negative, and their sum must be at most 1"
        )
    rise, fall = round(warmup_fraction * steps), round(decay_fraction * steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak_lr, rise),
            optax.constant_schedule(peak_lr),
            optax.linear_schedule(peak_lr, 0.0, fall),
        ],
        boundaries=[rise, steps - fall],
    )


def warmup_cosine(peak_lr: float, steps: int, *, warmup_fraction: float = 0.03) -> optax.Schedule:
    """Returns linear warmup, then half a cosine to zero (SODA, speech-to-speech translation).

    Raises:
      UserError: if `warmup_fraction` is negative or leaves no step after the warmup.
    """
    rise = round(warmup_fraction * steps)
    if not 0 <= rise < steps:
        raise UserError(
            f"optimizer.warmup_fraction {warmup_fraction} must be at least 0 and leave at least "
            "one step after the warmup"
        )
    return optax.warmup_cosine_decay_schedule(0.0, peak_lr, rise, steps)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the schedule of the `optimizer` settings of a run of `steps` steps."""
    if config.schedule == "cosine":
        return warmup_cosine(config.peak_lr, steps, warmup_fraction=config.warmup_fraction)
    return warmup_stable_decay(
        config.peak_lr,
        steps,
        warmup_fraction=config.warmup_fraction,
        decay_fraction=config.decay_fraction,
    )
