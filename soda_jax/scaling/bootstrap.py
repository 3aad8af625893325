"""Confidence intervals by the Bayesian bootstrap.

Every draw weights the runs with independent exponential numbers (Rubin, Annals of Statistics 9, 1981)
and repeats the fit. Unlike resampling, it never loses all runs of a budget.
`benchmarks/scaling_coverage.py` measures how often the intervals contain the truth.
"""

import dataclasses
from typing import Any

import numpy as np

from soda_jax.scaling.bias import flops_law
from soda_jax.scaling.parabola import fit_parabolas
from soda_jax.scaling.runs import Runs
from soda_jax.scaling.surface import Surface, fit_surfaces

LEVEL = 0.95
COEFFICIENTS = ("alpha", "beta", "E", "A", "B")
_AT_ONCE = 250  # draws, to bound the memory


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """The draws of a bootstrap.

    Attributes:
      surfaces: α, β, E, A and B of each draw by variable projection, `[draws, 5]`.
      exponents: (a, b) of approach 2 of each draw, `[draws, 2]`; NaN without a result.
      power: the exponent of N in the FLOPs, see `flops_law`.
    """

    surfaces: np.ndarray
    exponents: np.ndarray
    power: float = 1.0

    def intervals(self) -> dict[str, Any]:
        """Returns the 95% intervals of the coefficients and of the exponents a and b."""
        alpha, beta = self.surfaces[:, 0], self.surfaces[:, 1]
        flat = (self.surfaces[:, 3:] <= 0).any(1)  # without an optimum
        by_surface = dict(zip(COEFFICIENTS, self.surfaces.T, strict=True))
        total = np.where(flat | (self.power <= 0), np.nan, alpha + self.power * beta)
        by_surface |= {"a": beta / total, "b": alpha / total}
        by_parabola = dict(zip("ab", self.exponents.T, strict=True))
        return {
            "level": LEVEL,
            "draws": len(self.surfaces),
            "variable_projection": {name: interval(v) for name, v in by_surface.items()},
            "approach2": {name: interval(v) for name, v in by_parabola.items()},
        }


def draw_weights(draws: int, runs: int, seed: int) -> np.ndarray:
    """Returns the weights of each draw, f64 `[draws, runs]`; equal seeds give equal weights."""
    return np.random.default_rng(seed).exponential(size=(draws, runs))


def interval(values: np.ndarray) -> list[float] | None:
    """Returns the percentiles 2.5 and 97.5 of the finite values; None if fewer than 90% are finite."""
    values = values[np.isfinite(values)] if np.isfinite(values).mean() >= 0.9 else values[:0]
    if not len(values):
        return None
    outside = 50 * (1 - LEVEL)
    return [float(value) for value in np.percentile(values, [outside, 100 - outside])]


def bootstrap(runs: Runs, surface: Surface, weights: np.ndarray) -> Bootstrap:
    """Repeats variable projection and approach 2 with random weights.

    Args:
      runs: the runs.
      surface: the fit to all runs.
      weights: weights of the runs in each repetition, `[draws, runs]`, see `draw_weights`. Fits of other
        losses of the same runs use the same weights, so their draws can be compared one by one.
    """
    draws = len(weights)
    losses = np.broadcast_to(runs.loss, weights.shape)
    surfaces = [
        fit_surfaces(
            runs.params,
            runs.tokens,
            losses[first : first + _AT_ONCE],
            weights[first : first + _AT_ONCE],
            surface,
        )
        for first in range(0, draws, _AT_ONCE)
    ]
    exponents = np.full((draws, 2), np.nan)
    for draw, weight in enumerate(weights):
        found = fit_parabolas(runs.budget, runs.params, runs.tokens, runs.loss, weight)
        if found.params is None or found.tokens is None:
            if not found.by_params:
                break  # too few runs in a budget, which does not depend on the weights
            continue
        exponents[draw] = found.params.exponent, found.tokens.exponent
    return Bootstrap(np.concatenate(surfaces), exponents, flops_law(runs)[1])
