"""Learning-rate schedules, as functions of the step.

Every schedule is a plain `optax.Schedule`: step (int) -> learning rate (float).
"""

from typing import Any

import optax

from soda_jax.errors import UserError


def warmup_stable_decay(
    peak: float, steps: int, *, warmup: float = 0.10, decay: float = 0.20
) -> optax.Schedule:
    """Linear warm-up, constant, linear decay to zero (SODA, training table of the suite).

    Args:
      peak: learning rate of the stable phase.
      steps: length of the run in optimizer steps.
      warmup: share of `steps` spent warming up.
      decay: share of `steps` spent decaying, at the end.

    Raises:
      UserError: if warm-up and decay leave no room for each other.
    """
    if warmup < 0 or decay < 0 or warmup + decay > 1:
        raise UserError(
            f"optimizer.warmup {warmup} + optimizer.decay {decay} must be shares of one run"
        )
    rise, fall = round(warmup * steps), round(decay * steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, rise),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, fall),
        ],
        boundaries=[rise, steps - fall],
    )


def warmup_cosine(peak: float, steps: int, *, warmup: float = 0.03) -> optax.Schedule:
    """Linear warm-up, then half a cosine down to zero (SODA, speech-to-speech translation).

    Raises:
      UserError: if the warm-up leaves no room for the cosine.
    """
    rise = round(warmup * steps)
    if not 0 <= rise < steps:
        raise UserError(f"optimizer.warmup {warmup} must be a share of the run, below 1")
    return optax.warmup_cosine_decay_schedule(0.0, peak, rise, steps)


def make_schedule(settings: Any, steps: int) -> optax.Schedule:
    """The schedule that `config.optimizer` names.

    Raises:
      UserError: for an unknown name, and for steps or a peak that are not above 0.
    """
    if steps < 1:
        raise UserError(f"steps = {steps} must be at least 1")
    # The weight decay is relative to the peak, so that 0 has no meaning.
    if not settings.peak > 0:
        raise UserError(f"optimizer.peak = {settings.peak} must be above 0")
    if settings.schedule == "wsd":
        return warmup_stable_decay(
            settings.peak, steps, warmup=settings.warmup, decay=settings.decay
        )
    if settings.schedule == "cosine":
        return warmup_cosine(settings.peak, steps, warmup=settings.warmup)
    raise UserError(f"optimizer.schedule = {settings.schedule!r} is unknown: wsd, cosine")
