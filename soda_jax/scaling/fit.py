"""Fits scaling laws to a table of runs: three methods, intervals, checks, and the output as JSON."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.files import json_text
from soda_jax.scaling.bias import approach2_bias, drift_warning, flops_law
from soda_jax.scaling.bootstrap import COEFFICIENTS, bootstrap, draw_weights, interval
from soda_jax.scaling.log_sum_exp import fit_log_sum_exp
from soda_jax.scaling.parabola import fit_parabolas
from soda_jax.scaling.runs import Runs
from soda_jax.scaling.surface import (
    EXPONENTS,
    Surface,
    fit_parts,
    fit_surface,
    losses_of,
    optima,
)

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
    weights = draw_weights(draws, len(runs), seed)
    result = fit_loss(runs, weights, seed)
    result["parameter_counts"] = {
        name: fit_loss(dataclasses.replace(runs, params=count), weights[:0], seed)
        for name, count in runs.counts.items()
    }
    result["classes"] = {
        name: _fit_class(runs, name, loss, weights, seed) for name, loss in runs.classes.items()
    }
    result["class_differences"] = class_differences(result, runs.budget)
    result["set_aside"] = list(runs.set_aside)
    result["notes"] = list(runs.notes)
    result["table"] = dict(runs.source)
    return result


def _fit_class(
    runs: Runs, name: str, loss: np.ndarray, weights: np.ndarray, seed: int
) -> dict[str, Any]:
    measured = np.isfinite(loss) & (loss > 0)
    if measured.sum() < MIN_RUNS:
        return {"n": int(measured.sum()), "reason": f"fewer than {MIN_RUNS} runs with loss/{name}"}
    chosen = dataclasses.replace(runs, loss=loss).take(measured)
    found = fit_loss(chosen, weights[:, measured], seed)
    if missing := len(runs) - int(measured.sum()):
        found["warnings"].append(f"{missing} runs have no loss/{name}")
    return found


def fit_loss(runs: Runs, weights: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Returns the three fits of `runs.loss`, with intervals, errors and warnings.

    Args:
      runs: the runs.
      weights: weights of the runs in each draw of the bootstrap, `[draws, runs]`; no draws, no intervals.
      seed: the seed of the weights, for the output.
    """
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
        "optima": _optima(runs, surface),
        "approach2_bias": approach2_bias(surface, runs),
        "left_out_error": dict(left_out_errors(runs)),
        "warnings": warnings,
    }
    if len(weights):
        found = bootstrap(runs, surface, weights)
        result["intervals"] = {**found.intervals(), "seed": seed}
        result["optima"] = _optima(runs, surface, found.surfaces)
        if flat := int((found.surfaces[:, 3:] <= 0).any(1).sum()):
            warnings.append(
                f"A or B is 0 in {flat} of {len(weights)} draws, which have no optimum; the intervals of "
                "a, b, N* and D* leave them out, and there are none if they are more than 10%"
            )
        result["draws"] = {
            name: [float(f"{value:.6g}") for value in values]
            for name, values in zip(COEFFICIENTS, found.surfaces.T, strict=True)
        }
    return result


def _optima(runs: Runs, surface: Surface, draws: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Returns N*, D* and the loss there for each budget under the FLOPs of the table, with intervals.

    Args:
      runs: the runs.
      surface: the fit.
      draws: α, β, E, A and B of each draw, `[draws, 5]`.
    """
    constant, power = flops_law(runs)
    rows = []
    for budget in np.unique(runs.budget).tolist():
        values = np.array([surface.coefficients]) if draws is None else draws
        best = [float(value) for value in surface.optimum(budget / constant, power)]
        known = math.isfinite(best[0])
        names = ("params", "tokens", "loss")
        loss = float(surface.loss(*map(np.asarray, best)))
        row = {"budget": budget, **dict(zip(names, (*best, loss), strict=True))}
        row = {name: value if known or name == "budget" else None for name, value in row.items()}
        if draws is not None:
            around = optima(values, budget / constant, power)
            losses = losses_of(values, *around)
            ranges = (interval(value) for value in (*around, losses))
            row["intervals"] = dict(zip(names, ranges, strict=True))
        rows.append(row)
    return rows


def class_differences(fit: Mapping[str, Any], budgets: np.ndarray) -> list[dict[str, Any]]:
    """Returns for each pair of classes how their optima differ, by variable projection.

    The draws of two classes have the same weights, so the ratio of each draw is that of one resampled
    study. All classes are compared at the FLOPs of the table of the scalar loss.

    Args:
      fit: the result of `fit_table`, with `classes`.
      budgets: budgets of the runs, `[runs]`.

    Returns:
      `first` and `second`, the geometric mean of the budgets `budget`, `params_ratio`, N* of `first`
      divided by that of `second`, `a_difference`, the difference of the exponents a, and the 95% intervals
      of both if there are draws. Classes without an optimum are left out.
    """
    budget = float(np.exp(np.log(np.unique(budgets)).mean()))
    constant, power = fit["flops_law"]["constant"], fit["flops_law"]["power"]

    def of(values: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        table = np.array([values[name] for name in COEFFICIENTS], float).T
        params, _ = optima(table, budget / constant, power)
        with np.errstate(all="ignore"):
            a = table[..., 1] / (table[..., 0] + power * table[..., 1])
        return params, np.where(np.isfinite(params), a, np.nan)

    classes = {
        name: (of(one["variable_projection"]), of(one["draws"]) if "draws" in one else None)
        for name, one in fit["classes"].items()
        if "variable_projection" in one
    }
    rows = []
    for first, second in itertools.combinations(classes, 2):
        (here, draws), (there, other) = classes[first], classes[second]
        row = {
            "first": first,
            "second": second,
            "budget": budget,
            "params_ratio": float(here[0] / there[0]),
            "a_difference": float(here[1] - there[1]),
        }
        if not math.isfinite(row["params_ratio"]):
            continue
        if draws is not None and other is not None:
            row["intervals"] = {
                "params_ratio": interval(draws[0] / other[0]),
                "a_difference": interval(draws[1] - other[1]),
            }
        rows.append(row)
    return rows


def coefficients(surface: Surface, power: float) -> dict[str, float | None]:
    """Returns a surface as JSON, with the exponents a and b for C ∝ N^power · D."""
    values = {**dataclasses.asdict(surface)}
    values |= dict(zip("ab", surface.exponents(power), strict=True))
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def left_out_losses(runs: Runs) -> np.ndarray:
    """Returns the loss of each run as predicted by a fit without its budget, `[runs]`.

    NaN where fewer than six runs remain.
    """
    predicted = np.full(len(runs), np.nan)
    budgets = np.unique(runs.budget)
    used = runs.budget != budgets[:, None]
    used = used[used.sum(1) >= MIN_RUNS]
    if len(used):
        for rest, surface in zip(
            used, fit_parts(runs.params, runs.tokens, runs.loss, used), strict=True
        ):
            predicted[~rest] = surface.loss(runs.params[~rest], runs.tokens[~rest])
    return predicted


def left_out_errors(runs: Runs) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields each budget with the errors of a fit without it, relative to the measured losses.

    `mean` is the mean of predicted / measured − 1, `mean_absolute` that of its absolute value.
    Budgets without which fewer than six runs remain are skipped.
    """
    errors = left_out_losses(runs) / runs.loss - 1
    for budget in np.unique(runs.budget):
        error = errors[runs.budget == budget]
        if np.isfinite(error).all():
            yield (
                f"{budget:g}",
                {"mean": float(error.mean()), "mean_absolute": float(np.abs(error).mean())},
            )


def to_text(result: dict[str, Any]) -> str:
    """Returns a result as indented JSON with each list of numbers on one line."""
    return re.sub(r"\[[-+.\deE,\s]+\]", lambda match: " ".join(match[0].split()), json_text(result))
