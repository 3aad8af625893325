"""The loss of each class of tokens, and the optimum of each class."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from soda_jax.report.figures import INK, styled, subplots
from soda_jax.scaling.bootstrap import interval
from soda_jax.scaling.figures.fitted import FittedRuns, band
from soda_jax.scaling.figures.style import (
    GRAY,
    budget_text,
    class_style,
    log_budgets,
    log_counts,
    ordered_style,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = 4  # a row
_POINTS = 60
_FAR = 30.0  # factor between the optima and the tried sizes beyond which an axis ends


def titled(name: str) -> str:
    """Returns the name of a class as text."""
    return name.replace("_", " ")


def drawn_name(name: str) -> str:
    """Returns the name of a class for a figure, where matplotlib would read $…$ as a formula."""
    return titled(name).replace("$", r"\$")


@styled
def classes_figure(fitted: FittedRuns) -> "Figure":
    """Returns the loss of each class against N, one panel per class and one curve per budget.

    Markers are runs, lines are slices of the surface of the class.

    Args:
      fitted: the runs and their fits, with at least one class.
    """
    columns = min(_PANELS, len(fitted.classes))
    rows = math.ceil(len(fitted.classes) / columns)
    figure, axes = subplots(rows, columns, (10.8, 2.25 * rows + 0.3), layout="constrained")
    runs = fitted.runs
    for axis, (name, one) in zip(axes, fitted.classes.items(), strict=False):
        for index, budget in enumerate(fitted.budgets):
            chosen = (runs.budget == budget) & np.isfinite(one.loss)
            if not chosen.any():
                continue
            style = ordered_style(index, len(fitted.budgets))
            sizes = np.geomspace(runs.params[chosen].min(), runs.params[chosen].max(), _POINTS)
            losses = one.surface.loss(sizes, fitted.tokens_for(budget, sizes))
            axis.plot(sizes, losses, "-", color=style["color"], linewidth=1.1)
            axis.plot(
                *(runs.params[chosen], one.loss[chosen]), linestyle="none", markersize=3.6,
                label=budget_text(budget), **style,
            )  # fmt: skip
            best = float(fitted.optimum(one.surface, budget)[0])
            if sizes[0] <= best <= sizes[-1]:
                at = float(one.surface.loss(np.array(best), fitted.tokens_for(budget, best)))
                axis.plot(best, at, "*", color=INK, markersize=8.5, zorder=4)
        axis.set_title(drawn_name(name))
        log_counts(axis, "x", "", most=4)
    _finish(figure, axes, len(fitted.classes), columns)
    return figure


def _finish(figure: "Figure", axes: Any, panels: int, columns: int) -> None:
    from matplotlib.lines import Line2D

    for axis in axes[panels:]:
        axis.set_visible(False)
    for axis in axes[max(0, panels - columns) : panels]:
        axis.set_xlabel("parameters, N")
    for axis in axes[:panels:columns]:
        axis.set_ylabel("loss, nats")
    handles: dict[str, Any] = {}
    for axis in axes[:panels]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    star: Any = {"marker": "*", "markersize": 9, "linestyle": "none", "color": INK}
    handles["minimum"] = Line2D([], [], **star)
    figure.legend(
        list(handles.values()), list(handles), title="FLOPs", loc="outside lower center",
        ncols=min(8, len(handles)),
    )  # fmt: skip


@styled
def class_optima_figure(fitted: FittedRuns) -> "Figure":
    """Returns N*(C) of each class, its value at the middle budget and its exponent, with intervals.

    The middle budget is the geometric mean of the budgets. A class without an optimum has no line; one
    whose optimum is more than 30 times outside the tried sizes is outside the axes.

    Args:
      fitted: the runs and their fits, with at least one class.
    """
    figure, (lines, sizes, powers) = subplots(
        1, 3, (10.8, 4.4), layout="constrained", width_ratios=(1.5, 1, 1)
    )
    runs = fitted.runs
    budgets = np.geomspace(fitted.budgets[0], fitted.budgets[-1], _POINTS)
    middle = float(np.exp(np.log(fitted.budgets).mean()))
    everything = {"all": (fitted.surface, fitted.draws)}
    everything |= {name: (one.surface, one.draws) for name, one in fitted.classes.items()}
    shown, absent = [], []
    for index, (name, (surface, draws)) in enumerate(everything.items()):
        style: dict[str, Any] = class_style(index - 1) if index else {"color": GRAY}
        width: dict[str, Any] = {"linewidth": 1.5, "markersize": 5} if index else {"linewidth": 3.2}
        best = fitted.optimum(surface, budgets)[0]
        if np.isfinite(best).any():
            shown.append(best)
            every: Any = {"markevery": (index % 3, _POINTS // 5)}
            lines.plot(budgets, best, label=drawn_name(name), **every, **width, **style)
        a, row = surface.exponents(fitted.power)[0], -index
        marker = style.get("marker", "o")
        at = float(fitted.optimum(surface, middle)[0])
        ranges: list[Any] = [None, None]
        if len(draws):
            values = fitted.optima(draws, np.array([middle]))[0]
            exponents = _exponents(draws, fitted.power)
            ranges = [interval(values[:, 0]), interval(exponents)]
            if not index and np.isfinite(band(values)).all():
                low, high = band(fitted.optima(draws, budgets)[0])
                lines.fill_between(budgets, low, high, color=GRAY, alpha=0.2, linewidth=0)
        for axis, value, around in zip((sizes, powers), (at, a), ranges, strict=True):
            if np.isfinite(value):
                axis.plot(value, row, marker, color=style["color"], markersize=6)
            if around and np.isfinite(value):
                axis.plot(around, [row, row], "-|", color=style["color"], linewidth=1.4)
        if not np.isfinite(at):
            absent.append(row)
    names = [drawn_name(name) for name in everything]
    for axis in (sizes, powers):
        axis.set_yticks(-np.arange(len(names)), names)
        axis.set_ylim(-len(names) + 0.5, 0.5)
    low, high = runs.params.min(), runs.params.max()
    sizes.axvspan(low, high, color=GRAY, alpha=0.12, linewidth=0)
    sizes.set_xscale("log")
    left, right = sizes.get_xlim()
    sizes.set_xlim(max(left, low / _FAR), min(right, high * _FAR))
    log_counts(sizes, "x", "optimal parameters, N*", most=4)
    for row in absent:
        sizes.text(np.sqrt(low * high), row, "no optimum", ha="center", va="center", fontsize=8)
    sizes.set_title(f"N* at {budget_text(middle)} FLOPs")
    powers.set_yticklabels([])
    powers.set_xlabel("a")
    powers.set_title("exponent of N* ∝ C^a")
    lines.set_xscale("log")
    lines.set_yscale("log")
    if shown:
        known = np.clip(np.concatenate([*shown, [low, high]]), low / _FAR, high * _FAR)
        lines.set_ylim(*spread(known))
    log_budgets(lines, "x")
    log_counts(lines, "y", "optimal parameters, N*")
    lines.legend(fontsize=7.5, ncols=2)
    return figure


def _exponents(draws: np.ndarray, power: float) -> np.ndarray:
    """Returns a of N* ∝ C^a of each draw, `[draws]`; NaN without an optimum."""
    alpha, beta, _, a, b = draws.T
    known = (a > 0) & (b > 0) & (power > 0)
    return np.where(known, beta / (alpha + power * beta), np.nan)
