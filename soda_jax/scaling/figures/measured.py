"""Predicted against measured losses: of all runs, without their budget, and of held-out runs."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.report.figures import styled, subplots
from soda_jax.scaling.figures.classes import drawn_name
from soda_jax.scaling.figures.fitted import FittedRuns, band, losses_of_draws
from soda_jax.scaling.figures.style import (
    GRAY,
    MARKERS,
    PALETTE,
    PARABOLA,
    SURFACE,
    budget_text,
    log_budgets,
    spread,
)
from soda_jax.scaling.fit import left_out_losses
from soda_jax.scaling.runs import Runs
from soda_jax.scaling.summary import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FITTED, LEFT_OUT, HELD_OUT = "fit to all runs", "fit without this budget", "held-out run"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted and measured loss of one class for each held-out run.

    Attributes:
      name: the class; "all" is the scalar loss.
      measured, predicted: losses in nats, `[runs]`; NaN where the class was not measured.
      interval: 95% interval of the prediction by the bootstrap draws, `[2, runs]`; NaN without draws.
    """

    name: str
    measured: np.ndarray
    predicted: np.ndarray
    interval: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """Predicted divided by measured, minus 1, `[runs]`."""
        return self.predicted / self.measured - 1

    @property
    def error_interval(self) -> np.ndarray:
        """The interval of the prediction divided by measured, minus 1, `[2, runs]`."""
        return self.interval / self.measured - 1


def predictions(fitted: FittedRuns, held_out: Runs) -> list[Prediction]:
    """Returns the predictions of the scalar loss and of each fitted class that was measured.

    Raises:
      UserError: if the held-out runs are not comparable with the fitted ones, or one of them was fitted.
    """
    _check(fitted.runs, held_out)
    point = held_out.params, held_out.tokens
    found = [_prediction("all", held_out.loss, fitted.surface, fitted.draws, point)]
    for name, one in fitted.classes.items():
        loss = held_out.classes.get(name)
        if loss is not None and np.isfinite(loss).any():
            found.append(_prediction(name, loss, one.surface, one.draws, point))
    return found


def _prediction(name: str, loss: np.ndarray, surface: Any, draws: Any, point: Any) -> Prediction:
    around = np.full((2, len(loss)), np.nan)
    if len(draws):
        around = band(losses_of_draws(draws, *point))
    return Prediction(name, loss, surface.loss(*point), around)


def _check(runs: Runs, held_out: Runs) -> None:
    file = held_out.source.get("file", "the held-out table")
    for key in ("vocabulary", "length", "comparable"):
        here, there = runs.source.get(key), held_out.source.get(key)
        pairs = (
            [(name, here[name], there[name]) for name in here if name in there]
            if isinstance(here, dict) and isinstance(there, dict)
            else [(key, here, there)] * (here is not None and there is not None)
        )
        for name, first, second in pairs:
            if first != second and name != "experiment":
                raise UserError(
                    f"{file} has {name} {second}, but the fitted runs have {first}: the losses cannot "
                    "be compared; give held-out runs of the same study"
                )
    if runs.source["columns"].get("params") != held_out.source["columns"].get("params"):
        raise UserError(
            f"{file}: params is {held_out.source['columns'].get('params')}, but in the fitted table "
            f"{runs.source['columns'].get('params')}: give tables with the same columns"
        )
    fitted = set(zip(runs.params, runs.tokens, strict=True))
    for params, tokens in zip(held_out.params, held_out.tokens, strict=True):
        if (params, tokens) in fitted:
            raise UserError(
                f"{file}: the run with params {params:g} and tokens {tokens:g} is one of the fitted runs: "
                "a held-out run must not be in the fitted table"
            )


@styled
def measured_figure(
    fitted: FittedRuns, held_out: Runs | None = None, known: list[Prediction] | None = None
) -> "Figure":
    """Returns predicted against measured losses, and the relative errors against the budget.

    Args:
      fitted: the runs and their fits.
      held_out: runs that were not fitted.
      known: the result of `predictions` for `held_out`.
    """
    figure, (losses, errors) = subplots(1, 2, (10.8, 4.3), layout="constrained")
    runs = fitted.runs
    by_fit = fitted.surface.loss(runs.params, runs.tokens)
    left_out = left_out_losses(runs)
    circle = {"marker": "o", "color": SURFACE, "markersize": 6, "markerfacecolor": "none"}
    groups: list[tuple[str, Any, Any, Any, dict[str, Any]]] = [
        (FITTED, runs.budget, runs.loss, by_fit, circle),
        (LEFT_OUT, runs.budget, runs.loss, left_out, {"marker": "x", "color": PARABOLA}),
    ]
    if held_out is not None and known:
        style: dict[str, Any] = {"marker": "*", "color": PALETTE[4], "markersize": 12}
        groups.append((HELD_OUT, held_out.budget, held_out.loss, known[0].predicted, style))
    everything = np.concatenate([values for _, _, one, two, _ in groups for values in (one, two)])
    everything = everything[np.isfinite(everything)]
    margin = 0.04 * float(np.ptp(everything) or 1.0)
    ends = everything.min() - margin, everything.max() + margin
    losses.plot(ends, ends, "-", color=GRAY, linewidth=0.9, label="equal")
    errors.axhline(0, color=GRAY, linewidth=0.9)
    for label, budget, measured, predicted, style in groups:
        if np.isfinite(predicted).any():
            losses.plot(measured, predicted, linestyle="none", label=label, **style)
            relative = 100 * (predicted / measured - 1)
            errors.plot(budget, relative, linestyle="none", label=label, **style)
    losses.set_xlim(*ends)
    losses.set_ylim(*ends)
    losses.set_xlabel("measured loss, nats")
    losses.set_ylabel("predicted loss, nats")
    budgets = [budget for _, budget, *_ in groups]
    errors.set_xscale("log")
    errors.set_xlim(*spread(np.concatenate(budgets), 1.5))
    log_budgets(errors, "x")
    errors.set_ylabel("predicted / measured − 1, %")
    losses.legend(fontsize=8, loc="upper left")
    return figure


@styled
def held_out_figure(held_out: Runs, known: list[Prediction]) -> "Figure":
    """Returns the relative error of each class for each held-out run, with 95% intervals.

    Args:
      held_out: runs that were not fitted.
      known: their predictions.
    """
    columns = min(3, len(held_out))
    height = 1.2 + 0.32 * len(known) + 0.18 * math.ceil(len(held_out) / columns)
    figure, (axis,) = subplots(1, 1, (8.6, height), layout="constrained")
    axis.axvline(0, color=GRAY, linewidth=0.9)
    shifts = np.linspace(-0.25, 0.25, len(held_out)) if len(held_out) > 1 else np.zeros(1)
    for run, shift in enumerate(shifts):
        color = PALETTE[run % len(PALETTE)]
        rows = -np.arange(len(known)) - shift
        errors = np.array([100 * one.error[run] for one in known])
        ranges = np.array([100 * one.error_interval[:, run] for one in known])
        axis.hlines(rows, *ranges.T, color=color, linewidth=1.4)
        label = f"{budget_text(held_out.budget[run])} FLOPs, N = {count(held_out.params[run])}"
        style: Any = {"linestyle": "none", "marker": MARKERS[run % len(MARKERS)], "color": color}
        axis.plot(errors, rows, markersize=6, label=label, **style)
    names = [drawn_name(one.name) for one in known]
    axis.set_yticks(-np.arange(len(names)), names)
    axis.set_ylim(-len(names) + 0.5, 0.5)
    axis.set_xlabel("predicted / measured − 1, %")
    figure.legend(loc="outside lower center", ncols=columns, fontsize=8)
    return figure
