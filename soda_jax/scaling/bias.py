"""How far approach 2 is off on the grid that was run, and how that grid drifts from the optimum.

A parabola is only an approximation of L(N) at a budget. If the sizes are not centered on the optimum,
or less so at larger budgets, its minimum is off by an amount that changes with the budget, and so are
the exponents (arXiv 2603.22339).
"""

import math
from typing import Any

import numpy as np

from soda_jax.scaling.parabola import fit_parabolas
from soda_jax.scaling.runs import Runs
from soda_jax.scaling.surface import Surface

DRIFT = 1.5  # factor from the smallest to the largest budget that is reported
_BEYOND = 10.0  # approach 2 is extrapolated to this multiple of the largest budget


def flops_law(runs: Runs) -> tuple[float, float]:
    """Returns (constant, power) of C = constant · N^power · D, fitted to the runs.

    The power is 1 for C = 6ND, and less if the head takes a part of the FLOPs.
    """
    ratio = np.log(runs.budget / runs.tokens)
    if len(np.unique(runs.params)) < 2:
        return float(np.exp(np.mean(ratio - np.log(runs.params)))), 1.0
    power, offset = np.polyfit(np.log(runs.params), ratio, 1)
    return float(np.exp(offset)), float(power)


def optimum(surface: Surface, runs: Runs, budget: float | np.ndarray) -> tuple:
    """Returns (N*, D*) of a surface at a budget in FLOPs, under the `flops_law` of the runs."""
    constant, power = flops_law(runs)
    return surface.optimum(budget / constant, power)


def approach2_bias(surface: Surface, runs: Runs) -> dict[str, Any] | None:
    """Returns the error of approach 2 on noise-free losses of `surface` for these runs.

    Returns:
      The errors of the exponents a and b, and the factors by which N* and D* are off at 10 × the largest
      budget; None if approach 2 has no result or the surface has no optimum.
    """
    found = fit_parabolas(
        runs.budget, runs.params, runs.tokens, surface.loss(runs.params, runs.tokens)
    )
    a, b = surface.exponents(flops_law(runs)[1])
    if found.params is None or found.tokens is None or math.isnan(a):
        return None
    budget = _BEYOND * float(runs.budget.max())
    params, tokens = optimum(surface, runs, budget)
    with np.errstate(over="ignore"):
        factors = float(found.params.at(budget) / params), float(found.tokens.at(budget) / tokens)
    if not all(map(math.isfinite, factors)):
        return None
    return {
        "a": found.params.exponent - a,
        "b": found.tokens.exponent - b,
        "budget": budget,
        "params_factor": factors[0],
        "tokens_factor": factors[1],
    }


def drift_warning(surface: Surface, runs: Runs) -> str:
    """Returns a line if the grid drifts from the optimum as the budget grows, otherwise ""."""
    budgets = np.unique(runs.budget)
    best, _ = optimum(surface, runs, budgets)
    if len(budgets) < 2 or not np.isfinite(best).all():
        return ""
    middle = [np.log(runs.params[runs.budget == budget]).mean() for budget in budgets]
    logs = np.log(budgets)
    slope, offset = np.polyfit(logs, middle - np.log(best), 1)
    ends = np.exp(offset + slope * logs[[0, -1]])
    if max(ends[0] / ends[1], ends[1] / ends[0]) < DRIFT:
        return ""
    return (
        f"the grid drifts: the middle of the tried sizes is {ends[0]:.2f} × the optimum at "
        f"{budgets[0]:g} FLOPs and {ends[1]:.2f} × at {budgets[-1]:g}; prefer variable projection to "
        "approach 2"
    )
