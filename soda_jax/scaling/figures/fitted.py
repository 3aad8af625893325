"""The runs of a study together with their fits, as the figures need them."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.scaling.bootstrap import COEFFICIENTS, interval
from soda_jax.scaling.parabola import Approach2, fit_parabolas
from soda_jax.scaling.runs import Runs
from soda_jax.scaling.surface import Surface

_PARTS: dict[str, type | tuple[type, ...]] = {
    "n": int, "variable_projection": dict, "approach2": (dict, type(None)), "approach3": dict,
    "flops_law": dict, "classes": dict, "warnings": list, "table": dict,
}  # fmt: skip
_OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "draws": dict, "intervals": dict, "set_aside": list, "notes": list, "parameter_counts": dict,
    "left_out_error": (dict, type(None)), "approach2_bias": (dict, type(None)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ClassFit:
    """The fit of one class of tokens.

    Attributes:
      loss: measured losses in nats, `[runs]`; NaN where the class was not measured.
      surface: the fit by variable projection.
      draws: α, β, E, A and B of each bootstrap draw, `[draws, 5]`; may be empty.
    """

    loss: np.ndarray
    surface: Surface
    draws: np.ndarray


@dataclasses.dataclass(frozen=True)
class FittedRuns:
    """Runs with the fits of their losses.

    Attributes:
      runs: the runs.
      fit: the content of `fit.json`.
      surface: the fit of the scalar loss by variable projection.
      log_sum_exp: the fit of the scalar loss by approach 3.
      parabolas: the fit of the scalar loss by approach 2.
      draws: α, β, E, A and B of each bootstrap draw, `[draws, 5]`; may be empty.
      constant, power: the FLOPs of the table, C = constant · N^power · D.
      classes: the classes of tokens that have a fit.
    """

    runs: Runs
    fit: Mapping[str, Any]
    surface: Surface
    log_sum_exp: Surface
    parabolas: Approach2
    draws: np.ndarray
    constant: float
    power: float
    classes: Mapping[str, ClassFit]

    @property
    def budgets(self) -> np.ndarray:
        """Budgets of the curves in FLOPs, ascending, `[budgets]`."""
        return np.unique(self.runs.budget)

    def tokens_for(self, budget: float | np.ndarray, params: float | np.ndarray) -> np.ndarray:
        """Returns the tokens that a budget allows a model, under the FLOPs of the table."""
        return budget / (self.constant * np.asarray(params) ** self.power)

    def optimum(self, surface: Surface, budget: float | np.ndarray) -> tuple:
        """Returns N* and D* of a surface under the FLOPs of the table; NaN without an optimum."""
        found = self.optima(_row(surface), np.atleast_1d(budget))
        return tuple(values[0].reshape(np.shape(budget)) for values in found)

    def optima(self, draws: np.ndarray, budgets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns N* and D* of several surfaces, `[draws, budgets]` each; NaN without an optimum.

        Args:
          draws: α, β, E, A and B, `[draws, 5]`.
          budgets: FLOPs, `[budgets]`.
        """
        alpha, beta, _, a, b = draws.T[:, :, None]
        known = (a > 0) & (b > 0) & (self.power > 0)
        scale = budgets / self.constant / (1e6**self.power * 1e9)
        with np.errstate(all="ignore"):
            ratio = alpha * a / (beta * self.power * b) * scale**beta
            params = np.where(known, ratio ** (1 / (alpha + self.power * beta)), np.nan)
            tokens = scale * params**-self.power
        return params * 1e6, tokens * 1e9


def _row(surface: Surface) -> np.ndarray:
    """Returns the coefficients of a surface, `[1, 5]`."""
    return np.array([[getattr(surface, name) for name in COEFFICIENTS]])


def losses_of_draws(draws: np.ndarray, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Returns the losses of several surfaces, `[draws, points]`, for points `[points]`."""
    alpha, beta, e, a, b = draws.T[:, :, None]
    return e + a * (params / 1e6) ** -alpha + b * (tokens / 1e9) ** -beta


def band(values: np.ndarray) -> np.ndarray:
    """Returns the 95% interval of each column of `[draws, points]`, `[2, points]`; NaN if unknown."""
    ranges = [interval(column) or [np.nan, np.nan] for column in values.T]
    return np.array(ranges).reshape(-1, 2).T


def read_fit_json(file: str) -> dict[str, Any]:
    """Reads the JSON of `soda scaling fit`.

    Raises:
      UserError: if the file is unreadable or not the JSON of a fit.
    """
    try:
        fit = json.loads(Path(file).read_bytes())
        _check_parts(fit)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not a fit: {type(error).__name__}: {error}; write it with soda scaling fit"
        ) from None
    return fit


def _check_parts(fit: Any) -> None:
    """Raises ValueError, KeyError, TypeError or AttributeError if a part of a fit is missing or wrong."""
    missing = [name for name in _PARTS if name not in fit]
    if missing:
        raise ValueError(f"no {missing[0]}")
    for name, kind in (_PARTS | _OPTIONAL).items():
        if name in fit and not isinstance(fit[name], kind):
            raise ValueError(f"{name} is {type(fit[name]).__name__}")
    for name in ("columns", "select", "sha256", "file"):
        fit["table"][name]
    if not isinstance(fit["table"].get("near_best", 0.0), float | int):
        raise ValueError(f"near_best is {fit['table']['near_best']!r}")
    law = [float(fit["flops_law"][name]) for name in ("constant", "power")]
    if not (math.isfinite(law[1]) and 0 < law[0] < math.inf):
        raise ValueError(f"flops_law has constant {law[0]} and power {law[1]}")
    if fit["approach2"] is None:
        fit["approach2_reason"]
    if fit.get("approach2_bias"):
        for name in ("a", "b", "budget", "params_factor", "tokens_factor"):
            float(fit["approach2_bias"][name])
    for budget, error in (fit.get("left_out_error") or {}).items():
        float(budget), float(error["mean"]), float(error["mean_absolute"])
    _surface(fit["approach3"])
    for one in (fit, *fit["classes"].values()):
        if "variable_projection" in one:
            _surface(one["variable_projection"])
            _draws(one)


def fitted_runs(runs: Runs, fit: Mapping[str, Any], name: str = "the fit") -> FittedRuns:
    """Combines runs with the fit of the same table.

    Args:
      runs: the runs of a table.
      fit: the content of `fit.json`.
      name: name of the fit in messages.

    Raises:
      UserError: if the fit is that of another table.
    """
    for part, what in (("sha256", "content"), ("select", "selection"), ("columns", "columns")):
        if fit["table"].get(part) != runs.source.get(part):
            raise UserError(
                f"{name} has another {what} than {runs.source.get('file')}: it was fitted to "
                f"{fit['table'].get('file')} with {part} {fit['table'].get(part)}; fit the table again"
            )
    if fit["n"] != len(runs):
        raise UserError(
            f"{name} has {fit['n']} runs, but {runs.source.get('file')} has {len(runs)}: give the "
            "options of the fit, such as --keep_repeats"
        )
    classes = {
        key: ClassFit(runs.classes[key], _surface(one["variable_projection"]), _draws(one))
        for key, one in fit["classes"].items()
        if "variable_projection" in one and key in runs.classes
    }
    return FittedRuns(
        runs=runs,
        fit=fit,
        surface=_surface(fit["variable_projection"]),
        log_sum_exp=_surface(fit["approach3"]),
        parabolas=fit_parabolas(runs.budget, runs.params, runs.tokens, runs.loss),
        draws=_draws(fit),
        constant=float(fit["flops_law"]["constant"]),
        power=float(fit["flops_law"]["power"]),
        classes=classes,
    )


def _surface(values: Mapping[str, Any]) -> Surface:
    return Surface(*(float(values[name]) for name in COEFFICIENTS))


def _draws(fit: Mapping[str, Any]) -> np.ndarray:
    draws = fit.get("draws", {})
    return np.array([draws.get(name, []) for name in COEFFICIENTS], float).T
