"""Draws the curves of several runs into one figure, one color per run."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from soda_jax.report.figures import PANELS_A_ROW, Rows, series, smoothed, styled, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Readable on a light and on a dark page. After the last color, they repeat with another line style.
_COLORS = ("#5b8fd1", "#e0782f", "#3f9a6b", "#9a86c9", "#d0607f", "#a58b2c", "#3a9fae", "#96745c")
_STYLES = (("-", ""), ("--", "dashed"), (":", "dotted"))
_POINTS = 300  # of a curve; more cannot be distinguished
_MARKED = 40  # evaluations with a marker each; more would hide the other runs


def color_of(number: int) -> str:
    """Returns the color of run `number`, as CSS."""
    return _COLORS[number % len(_COLORS)]


def style_of(number: int) -> tuple[str, str]:
    """Returns the line style of run `number` for matplotlib, and its name; "" for a plain line."""
    return _STYLES[number // len(_COLORS) % len(_STYLES)]


@styled
def losses_figure(runs: Sequence[Rows], classes: Sequence[str]) -> "Figure":
    """Returns a figure of the losses over the steps, with one panel per class of token.

    Args:
      runs: rows of the `metrics.jsonl` of each run. Training losses (`loss/<name>`) are thin, smoothed lines,
        held-out losses (`validation/loss/<name>`) thicker ones, with markers if they are few.
      classes: names of the token classes.
    """
    figure, axes = _panels(classes)
    for axis, name in zip(axes, classes, strict=False):
        for number, rows in enumerate(runs):
            color, (style, _) = color_of(number), style_of(number)
            steps, values = series(rows, f"loss/{name}")
            chosen = _thinned(len(steps))
            line, smooth = steps[chosen], smoothed(values)[chosen]
            axis.plot(line, smooth, style, color=color, alpha=0.45, linewidth=1)
            _held_out(axis, number, rows, f"validation/loss/{name}")
        axis.set_ylim(bottom=0)
    for axis in axes[:: _columns(classes)]:
        axis.set_ylabel("nats per token")
    figure.tight_layout(pad=0.5)
    return figure


@styled
def scores_figure(runs: Sequence[Rows], keys: Sequence[str], titles: Sequence[str]) -> "Figure":
    """Returns a figure with one small panel per score over the steps.

    Args:
      runs: rows of the `metrics.jsonl` of each run.
      keys: the keys of the scores, `evaluation/TASK/…`.
      titles: the title of each.
    """
    figure, axes = _panels(titles)
    for axis, key in zip(axes, keys, strict=False):
        for number, rows in enumerate(runs):
            _held_out(axis, number, rows, key)
    figure.tight_layout(pad=0.5)
    return figure


def _held_out(axis: "Axes", number: int, rows: Rows, key: str) -> None:
    """Draws a line through the evaluations of run `number`, with markers if they are few."""
    color, (style, _) = color_of(number), style_of(number)
    steps, values = series(rows, key)
    chosen = _thinned(len(steps))
    axis.plot(steps[chosen], values[chosen], style, color=color, linewidth=1.2)
    if len(steps) <= _MARKED:
        axis.plot(steps, values, "o", color=color, markersize=3.2)


def _columns(panels: Sequence[str]) -> int:
    return min(PANELS_A_ROW, len(panels))


def _panels(titles: Sequence[str]) -> "tuple[Figure, list[Axes]]":
    """Returns a figure with a titled panel per name; the unused ones at its end are hidden."""
    columns = _columns(titles)
    lines = math.ceil(len(titles) / columns)
    figure, axes = subplots(lines, columns, (2.3 * columns, 2.0 * lines + 0.1))
    for axis, title in zip(axes, titles, strict=False):
        # A dollar sign would start a formula.
        shown = title.replace("_", " ").replace("$", r"\$")
        axis.set_title("\n".join(textwrap.wrap(shown, 26)))
    for axis in axes[max(0, len(titles) - columns) : len(titles)]:
        axis.set_xlabel("step")
    for axis in axes[len(titles) :]:
        axis.set_visible(False)
    return figure, axes


def _thinned(count: int) -> np.ndarray:
    """Returns at most `_POINTS` evenly spaced indices of `count` points, with the first and the last."""
    return np.unique(
        np.linspace(0, max(count - 1, 0), min(count, _POINTS)).round().astype(np.int64)
    )
