"""The optimal N and D against the budget, by all three methods."""

from typing import TYPE_CHECKING, Any

import numpy as np

from soda_jax.report.figures import styled, subplots
from soda_jax.scaling.figures.fitted import FittedRuns, band
from soda_jax.scaling.figures.style import (
    GRAY,
    LOG_SUM_EXP,
    PARABOLA,
    SURFACE,
    log_budgets,
    log_counts,
    spread,
)
from soda_jax.scaling.parabola import fit_parabolas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SURFACE_LINE, LOG_SUM_EXP_LINE, PARABOLA_LINE = "variable projection", "approach 3", "approach 2"
PARABOLA_MINIMA = "minima of the parabolas"
_BEYOND = 3.0  # factor by which the lines continue outside the budgets
_POINTS = 60


@styled
def optima_figure(fitted: FittedRuns) -> "Figure":
    """Returns N*(C) and D*(C) on logarithmic axes with 95% bands and the minima of the budgets.

    The bands are those of the bootstrap draws: of variable projection if the fit has draws, and of
    approach 2, which is repeated with the weights of the same draws. Approach 3 has no draws.

    Args:
      fitted: the runs and their fits.
    """
    figure, axes = subplots(1, 2, (10.8, 4.3), layout="constrained")
    budgets = np.geomspace(fitted.budgets[0] / _BEYOND, fitted.budgets[-1] * _BEYOND, _POINTS)
    names: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        (SURFACE_LINE, fitted.surface, {"color": SURFACE, "linestyle": "-", "linewidth": 2}),
        (LOG_SUM_EXP_LINE, fitted.log_sum_exp, {"color": LOG_SUM_EXP, "linestyle": ":"}),
    )
    shown: list[list[np.ndarray]] = [[], []]
    for label, surface, style in names:
        for number, values in enumerate(fitted.optimum(surface, budgets)):
            if np.isfinite(values).any():
                axes[number].plot(budgets, values, label=label, **{"linewidth": 1.8, **style})
                shown[number].append(values)
    if len(fitted.draws):
        for axis, values in zip(axes, fitted.optima(fitted.draws, budgets), strict=True):
            _band(axis, budgets, values, SURFACE, "")
    for number, values in enumerate(_parabola_draws(fitted, budgets)):
        if len(values):
            _band(axes[number], budgets, values, PARABOLA, "///")
    laws = (fitted.parabolas.params, fitted.parabolas.tokens)
    curves = (fitted.parabolas.by_params, fitted.parabolas.by_tokens)
    for number, (law, ones) in enumerate(zip(laws, curves, strict=True)):
        if law is not None:
            axes[number].plot(
                *(budgets, law.at(budgets), "--"),
                color=PARABOLA,
                linewidth=1.8,
                label=PARABOLA_LINE,
            )
            shown[number].append(law.at(budgets))
        for inside, fill in ((True, PARABOLA), (False, "none")):
            points = [
                (one.budget, one.minimum)
                for one in ones
                if np.isfinite(one.minimum) and one.inside == inside
            ]
            if points:
                label = PARABOLA_MINIMA + ("" if inside else ", outside the tried sizes")
                x, y = np.array(points).T
                axes[number].plot(
                    *(x, y, "D"), color=PARABOLA, markerfacecolor=fill, markersize=5.5, label=label
                )
    runs = fitted.runs
    for axis, counts, values in zip(axes, (runs.params, runs.tokens), shown, strict=True):
        axis.plot(*(runs.budget, counts, "_"), color=GRAY, markersize=7, alpha=0.8, label="runs")
        low, high = spread(np.concatenate([counts, *values]))
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(low, high)
        axis.set_xlim(budgets[0], budgets[-1])
        log_budgets(axis, "x")
    log_counts(axes[0], "y", "optimal parameters, N*")
    log_counts(axes[1], "y", "optimal training tokens, D*")
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(4, len(handles)),
    )
    return figure


def _band(axis: Any, budgets: np.ndarray, values: np.ndarray, color: str, hatch: str) -> None:
    low, high = band(values)
    label = f"95% interval{', approach 2' if hatch else ''}"
    if np.isfinite(low).any():
        axis.fill_between(
            *(budgets, low, high), facecolor="none" if hatch else color, edgecolor=color,
            alpha=0.45 if hatch else 0.22, hatch=hatch or None, linewidth=0.5, label=label,
        )  # fmt: skip


def _parabola_draws(fitted: FittedRuns, budgets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns N* and D* of approach 2 with the weights of each draw, `[draws, budgets]` each.

    Both are empty without draws or without a result of approach 2; a draw without a result is NaN.
    """
    none = np.empty((0, len(budgets)))
    seed = fitted.fit.get("intervals", {}).get("seed")
    if seed is None or fitted.parabolas.params is None:
        return none, none
    runs, size = fitted.runs, (len(fitted.draws), len(fitted.runs))
    found = np.full((2, len(fitted.draws), len(budgets)), np.nan)
    for draw, weights in enumerate(np.random.default_rng(seed).exponential(size=size)):
        one = fit_parabolas(runs.budget, runs.params, runs.tokens, runs.loss, weights)
        if one.params is not None and one.tokens is not None:
            found[:, draw] = one.params.at(budgets), one.tokens.at(budgets)
    return found[0], found[1]
