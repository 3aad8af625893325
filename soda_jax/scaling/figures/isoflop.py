"""IsoFLOP curves: the loss of each budget against N and against D."""

from typing import TYPE_CHECKING, Any

import numpy as np

from soda_jax.report.figures import INK, styled, subplots
from soda_jax.scaling.figures.fitted import FittedRuns
from soda_jax.scaling.figures.style import GRAY, budget_text, log_counts, ordered_style
from soda_jax.scaling.parabola import Parabola

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SURFACE_MINIMUM, PARABOLA_MINIMUM = "minimum of the surface", "minimum of the parabola"
_BEYOND = 2.5  # minima up to this factor outside the tried sizes are drawn
_POINTS = 80


@styled
def isoflop_figure(fitted: FittedRuns) -> "Figure":
    """Returns the loss against N and against D, one curve per budget.

    Markers are runs; solid lines are slices of the surface at the budget, dashed lines parabolas. Minima
    further than a factor of 2.5 outside the tried sizes are not drawn.

    Args:
      fitted: the runs and their fits.
    """
    figure, axes = subplots(1, 2, (10.8, 4.6), sharey=True, layout="constrained")
    runs = fitted.runs
    minima: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for index, budget in enumerate(fitted.budgets):
        style = ordered_style(index, len(fitted.budgets))
        chosen = runs.budget == budget
        order = np.argsort(runs.params[chosen])
        best = float(fitted.optimum(fitted.surface, budget)[0])
        sizes = _sizes(runs.params[chosen], best)
        slices = (sizes, fitted.tokens_for(budget, sizes))
        at = (np.asarray(best), np.asarray(fitted.tokens_for(budget, best)))
        losses = fitted.surface.loss(*slices)
        parabolas = (fitted.parabolas.by_params, fitted.parabolas.by_tokens)
        for number, counts in enumerate((runs.params[chosen], runs.tokens[chosen])):
            axis = axes[number]
            axis.plot(slices[number], losses, "-", color=style["color"], linewidth=1.3)
            axis.plot(
                *(counts[order], runs.loss[chosen][order]), linestyle="none", markersize=4.5,
                label=budget_text(budget) if number == 0 else None, **style,
            )  # fmt: skip
            if sizes[0] <= best <= sizes[-1]:
                minima.setdefault((number, SURFACE_MINIMUM), []).append(
                    (float(at[number]), float(fitted.surface.loss(*at)))
                )
            if index < len(parabolas[number]):
                one = parabolas[number][index]
                line = np.geomspace(counts.min(), counts.max(), _POINTS)
                axis.plot(line, _on(one, line), "--", color=style["color"], linewidth=1, alpha=0.8)
                if counts.min() / _BEYOND <= one.minimum <= counts.max() * _BEYOND:
                    minima.setdefault((number, PARABOLA_MINIMUM), []).append(
                        (one.minimum, one.loss)
                    )
    for (number, label), points in minima.items():
        _mark(axes[number], points, label)
    _limits(axes, runs.loss, minima)
    log_counts(axes[0], "x", "parameters, N")
    log_counts(axes[1], "x", "training tokens, D")
    axes[0].set_ylabel("loss, nats")
    _legend(figure, axes[0], bool(fitted.parabolas.by_params))
    return figure


def _sizes(params: np.ndarray, best: float) -> np.ndarray:
    """Returns sizes from the smallest to the largest run, and to a minimum that is not far outside."""
    low, high = params.min(), params.max()
    if np.isfinite(best) and low / _BEYOND <= best <= high * _BEYOND:
        low, high = min(low, best / 1.1), max(high, best * 1.1)
    return np.geomspace(low, high, _POINTS)


def _on(parabola: Parabola, counts: np.ndarray) -> np.ndarray:
    """Returns the values of a parabola in nats; NaN without a minimum."""
    return parabola.loss + parabola.curvature * np.log(counts / parabola.minimum) ** 2


def _mark(axis: Any, points: list[tuple[float, float]], label: str) -> None:
    surface = label == SURFACE_MINIMUM
    style: dict[str, Any] = {"marker": "*", "markersize": 11} if surface else {"marker": "d"}
    if not surface:
        style |= {"markersize": 7.5, "markerfacecolor": "none", "markeredgewidth": 1.3}
    x, y = zip(*points, strict=True)
    axis.plot(x, y, linestyle="none", color=INK, label=label, zorder=4, **style)


def _limits(axes: Any, losses: np.ndarray, minima: dict[Any, list[tuple[float, float]]]) -> None:
    """Limits the losses to those of the runs and minima, because a slice may be much higher."""
    known = [*losses, *(loss for points in minima.values() for _, loss in points)]
    low, high = min(known), max(known)
    margin = 0.05 * (high - low or 1.0)
    axes[0].set_ylim(low - margin, high + margin)


def _legend(figure: "Figure", axis: Any, parabolas: bool) -> None:
    from matplotlib.lines import Line2D

    handles, labels = axis.get_legend_handles_labels()
    marks = [h for h, label in zip(handles, labels, strict=True) if label.startswith("minimum")]
    lines = [Line2D([], [], color=GRAY, linestyle="-", label="fitted surface")]
    if parabolas:
        lines.append(Line2D([], [], color=GRAY, linestyle="--", label="parabola"))
    budgets = [h for h, label in zip(handles, labels, strict=True) if "minimum" not in label]
    title = "FLOPs"
    figure.legend(handles=budgets, title=title, loc="outside right upper")
    axis.legend(handles=[*lines, *marks], loc="best", fontsize=8)
