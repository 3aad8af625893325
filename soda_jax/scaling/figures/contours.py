"""Contours of the fitted loss over N and D, with the runs and the efficient frontier."""

import math
from typing import TYPE_CHECKING

import numpy as np

from soda_jax.report.figures import INK, styled, subplots
from soda_jax.scaling.figures.fitted import FittedRuns
from soda_jax.scaling.figures.style import (
    GRAY,
    PARABOLA,
    budget_text,
    log_counts,
    ordered_style,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRONTIER = "efficient frontier"
_LEVELS = 12
_POINTS = 120


@styled
def contours_figure(fitted: FittedRuns) -> "Figure":
    """Returns contours of the loss in nats over N and D on logarithmic axes.

    Args:
      fitted: the runs and their fits.
    """
    figure, (axis,) = subplots(1, 1, (8.6, 5.4), layout="constrained")
    runs = fitted.runs
    params, tokens = spread(runs.params, 1.6), spread(runs.tokens, 1.6)
    n, d = np.geomspace(*params, _POINTS), np.geomspace(*tokens, _POINTS)
    loss = fitted.surface.loss(n[:, None], d[None]).T
    # The scales and limits are set first, because the labels are positioned on the screen.
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(*params)
    axis.set_ylim(*tokens)
    levels = contour_levels(loss)
    if len(levels):
        lines = axis.contour(n, d, loss, levels=levels, colors=INK, linewidths=0.9, alpha=0.75)
        axis.clabel(lines, fmt="%g", fontsize=8, inline_spacing=3)
    for budget in fitted.budgets:
        axis.plot(n, fitted.tokens_for(budget, n), ":", color=GRAY, linewidth=0.8, alpha=0.8)
    for index, budget in enumerate(fitted.budgets):
        chosen = runs.budget == budget
        style = ordered_style(index, len(fitted.budgets))
        axis.plot(
            *(runs.params[chosen], runs.tokens[chosen]), linestyle="none", markersize=4.5,
            label=budget_text(budget), **style,
        )  # fmt: skip
    budgets = np.geomspace(fitted.budgets[0] / 100, fitted.budgets[-1] * 100, 200)
    best = fitted.optimum(fitted.surface, budgets)
    if np.isfinite(best[0]).any():
        axis.plot(*best, "-", color=PARABOLA, linewidth=2.6, label=FRONTIER)
    log_counts(axis, "x", "parameters, N")
    log_counts(axis, "y", "training tokens, D")
    figure.legend(title="FLOPs", loc="outside right upper")
    return figure


def contour_levels(loss: np.ndarray) -> np.ndarray:
    """Returns about twelve rounded levels at equal shares of the area, ascending.

    The loss rises steeply toward small N and D, so that levels at equal distances would be crowded there.
    """
    values = np.quantile(loss, np.linspace(0.02, 0.98, _LEVELS))
    step = float(np.diff(values).min())
    if not step > 0:
        return values[:0]
    return np.unique(values.round(max(0, -math.floor(math.log10(step)))))
