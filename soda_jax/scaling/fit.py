"""Fits scaling laws to a table of runs: three methods, intervals, checks, and the output as JSON."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.files import json_text
from soda_jax.scaling.bias import approach2_bias, drift_warning, flops_law
from soda_jax.scaling.bootstrap import COEFFICIENTS, bootstrap
from soda_jax.scaling.log_sum_exp import fit_log_sum_exp
from soda_jax.scaling.parabola import fit_parabolas
from soda_jax.scaling.runs import Runs
from soda_jax.scaling.surface import EXPONENTS, Surface, fit_surface

MIN_RUNS = 6  # one more than there are coefficients


def fit_table(runs: Runs, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Fits the loss of all runs, each class of tokens and each parameter count.

    Args:
      runs: the runs.
      draws: bootstrap draws for the scalar loss and the classes; 0 for none.
      seed: seed of the bootstrap.

    Returns:
      The content of `fit.json`, see docs/scaling.md.

    Raises:
      UserError: if there are fewer than six runs.
    """
    if len(runs) < MIN_RUNS:
        raise UserError(
            f"{len(runs)} usable runs; five coefficients need at least {MIN_RUNS} runs: add runs to "
            f"{runs.source.get('file', 'the table')}"
        )
    result = fit_loss(runs, draws, seed)
    result["parameter_counts"] = {
        name: fit_loss(dataclasses.replace(runs, params=count), 0, seed)
        for name, count in runs.counts.items()
    }
    result["classes"] = {
        name: _fit_class(runs, name, loss, draws, seed) for name, loss in runs.classes.items()
    }
    result["set_aside"] = list(runs.set_aside)
    result["notes"] = list(runs.notes)
    result["table"] = dict(runs.source)
    return result


def _fit_class(runs: Runs, name: str, loss: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
    measured = np.isfinite(loss) & (loss > 0)
    if measured.sum() < MIN_RUNS:
        return {"n": int(measured.sum()), "reason": f"fewer than {MIN_RUNS} runs with loss/{name}"}
    found = fit_loss(dataclasses.replace(runs, loss=loss).take(measured), draws, seed)
    if missing := len(runs) - int(measured.sum()):
        found["warnings"].append(f"{missing} runs have no loss/{name}")
    return found


def fit_loss(runs: Runs, draws: int, seed: int) -> dict[str, Any]:
    """Returns the three fits of `runs.loss`, with intervals, errors and warnings."""
    parabolas = fit_parabolas(runs.budget, runs.params, runs.tokens, runs.loss)
    surface = fit_surface(runs.params, runs.tokens, runs.loss)
    constant, power = flops_law(runs)
    warnings = [*parabolas.warnings]
    if len(np.unique(runs.budget)) < 2:
        warnings.append("there is one budget, which does not determine the surface")
    for coefficient in ("A", "B"):
        if getattr(surface, coefficient) == 0:
            warnings.append(f"{coefficient} = 0: the losses do not fall along this axis")
    for exponent in ("alpha", "beta"):
        if getattr(surface, exponent) in EXPONENTS:
            low, high = EXPONENTS
            warnings.append(f"{exponent} is at the limit of the search, {low} to {high}")
    if line := drift_warning(surface, runs):
        warnings.append(line)
    result: dict[str, Any] = {
        "n": len(runs),
        "approach2": parabolas.to_json(),
        "approach2_reason": parabolas.reason or None,
        "approach3": coefficients(fit_log_sum_exp(runs.params, runs.tokens, runs.loss), power),
        "variable_projection": coefficients(surface, power),
        "flops_law": {"constant": constant, "power": power},
        "approach2_bias": approach2_bias(surface, runs),
        "left_out_error": dict(left_out_errors(runs)),
        "warnings": warnings,
    }
    if draws:
        found = bootstrap(runs, surface, draws, seed)
        result["intervals"] = {**found.intervals(), "seed": seed}
        result["draws"] = {
            name: [float(f"{value:.6g}") for value in values]
            for name, values in zip(COEFFICIENTS, found.surfaces.T, strict=True)
        }
    return result


def coefficients(surface: Surface, power: float) -> dict[str, float | None]:
    """Returns a surface as JSON, with the exponents a and b for C ∝ N^power · D."""
    values = {**dataclasses.asdict(surface)}
    values |= dict(zip("ab", surface.exponents(power), strict=True))
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def left_out_errors(runs: Runs) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields each budget with the errors of a fit without it, relative to the measured losses.

    `mean` is the mean of predicted / measured − 1, `mean_absolute` that of its absolute value.
    Budgets without which fewer than six runs remain are skipped.
    """
    for budget in np.unique(runs.budget):
        held = runs.budget == budget
        if (~held).sum() < MIN_RUNS:
            continue
        rest = runs.take(~held)
        surface = fit_surface(rest.params, rest.tokens, rest.loss)
        error = surface.loss(runs.params[held], runs.tokens[held]) / runs.loss[held] - 1
        yield (
            f"{budget:g}",
            {"mean": float(error.mean()), "mean_absolute": float(np.abs(error).mean())},
        )


def to_text(result: dict[str, Any]) -> str:
    """Returns a result as indented JSON with each list of numbers on one line."""
    return re.sub(r"\[[-+.\deE,\s]+\]", lambda match: " ".join(match[0].split()), json_text(result))
