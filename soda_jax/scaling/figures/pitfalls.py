"""Figures of the pitfalls in docs/scaling.md, from the rules of the paper and a published law."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from soda_jax.report.figures import styled, subplots
from soda_jax.scaling.figures.output import Drawn
from soda_jax.scaling.figures.style import (
    GRAY,
    LINES,
    MARKERS,
    PALETTE,
    budget_text,
    log_budgets,
    log_counts,
    log_factors,
    ordered_style,
)
from soda_jax.scaling.rules import BUDGETS, batch, peak_lr, soda
from soda_jax.scaling.shape import legal_head_rows
from soda_jax.scaling.surface import Surface
from soda_jax.tokens.vocabulary import VocabularyLayout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VOCABULARY, LENGTH = 144_644, 4096
# The surface that arXiv 2603.22339 fitted to SODA's runs; N in millions, D in billions.
SODA_SURFACE = Surface(0.684, 0.439, 3.169, 215_886 / 1e6**0.684, 4750 / 1e9**0.439)
PENALTIES = (0.001, 0.003, 0.01)
_WIDTHS = np.arange(128, 3073, 128)
_CAPPED_BUDGETS = (3e18, 3e19, 3e20)


def pitfall_figures() -> list[Drawn]:
    """Returns the figures of all pitfalls."""
    return [
        Drawn(
            "scaling_six_nd",
            "6ND",
            "FLOPs of the model divided by 6ND, for three ways to count N, in the widths of the paper.",
            six_nd_figure(),
        ),
        Drawn(
            "scaling_flat_minima",
            "Flat minima",
            "Loss of a model of another size at the same budget, relative to the lowest loss (left), and the "
            "sizes within three such limits (right).",
            flat_minima_figure(),
        ),
        Drawn(
            "scaling_lr_cap",
            "Learning-rate cap",
            "Batch size, learning rate and steps over the width, with the cap of 0.01 (filled) and without "
            "(hollow).",
            lr_cap_figure(),
        ),
        Drawn(
            "scaling_head",
            "Heads that dominate",
            "Share of the head in the FLOPs of the model (left), and how N* and D* move if only the logits of "
            "legal ids are computed (right).",
            head_figure(),
        ),
    ]


def model_sizes(
    widths: Sequence[int] | np.ndarray, matrices: int = 2, head_rows: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns parameters and training FLOPs per token of the paper's models, `[widths]` each.

    Args:
      widths: widths of the models.
      matrices: how many of embedding and head are counted as parameters.
      head_rows: mean number of logits per token; by default all ids.
    """
    shapes = [soda().shape(int(width)) for width in widths]
    params = [shape.parameters(VOCABULARY, matrices) for shape in shapes]
    flops = [3 * shape.forward_flops_per_token(VOCABULARY, LENGTH, head_rows) for shape in shapes]
    return np.array(params, float), np.array(flops)


@styled
def six_nd_figure() -> "Figure":
    """Returns C / (6ND) over the width for three counts of parameters."""
    figure, (axis,) = subplots(1, 1, (8.6, 3.9), layout="constrained")
    counts = ("with embedding and head", "with one of the two", "with neither")
    axis.axhline(1, color=GRAY, linewidth=1)
    for index, (matrices, label) in enumerate(zip((2, 1, 0), counts, strict=True)):
        params, flops = model_sizes(_WIDTHS, matrices)
        axis.plot(
            *(_WIDTHS, flops / (6 * params), LINES[index]), color=PALETTE[index], label=f"N {label}",
            marker=MARKERS[index], markersize=4,
        )  # fmt: skip
    axis.set_ylim(0.45, 40)
    log_factors(axis, "x", "width")
    log_factors(axis, "y", "C / (6ND)")
    axis.legend()
    return figure


@styled
def flat_minima_figure() -> "Figure":
    """Returns the loss penalty of sizes other than N*, and the sizes within given penalties."""
    figure, (curves, ranges) = subplots(1, 2, (10.8, 4.2), layout="constrained")
    bounds: dict[float, list[tuple[float, float, float]]] = {limit: [] for limit in PENALTIES}
    for index, budget in enumerate(BUDGETS):
        params, _, loss = _losses(budget)
        best = int(loss.argmin())
        penalty, factor = loss / loss[best] - 1, params / params[best]
        for limit in PENALTIES:
            inside = factor[penalty <= limit]
            bounds[limit].append((budget, inside.min(), inside.max()))
        style = ordered_style(index, len(BUDGETS))
        shown = (factor > 1 / 4.2) & (factor < 4.2)
        every = int(shown.sum()) // 9
        curves.plot(
            *(factor[shown], 100 * penalty[shown]), markevery=(index * every // 7, every),
            markersize=4.5, linewidth=1.2, label=budget_text(budget), **style,
        )  # fmt: skip
    curves.set_ylim(0, 3)
    curves.set_xlim(1 / 4.1, 4.1)
    log_factors(curves, "x", "N / N*")
    curves.set_ylabel("loss above the lowest, %")
    curves.legend(title="FLOPs", fontsize=8, loc="upper center", ncols=2)
    for index, (limit, rows) in enumerate(bounds.items()):
        budgets, low, high = np.array(rows).T
        style = {"color": PALETTE[index], "linestyle": LINES[index], "marker": MARKERS[index]}
        ranges.plot(budgets, high, markersize=4, label=f"loss within {100 * limit:g}%", **style)
        ranges.plot(budgets, low, markersize=4, **style)
    ranges.axhline(1, color=GRAY, linewidth=1)
    log_factors(ranges, "y", "N / N*")
    log_budgets(ranges, "x")
    ranges.legend(fontsize=8)
    return figure


def _losses(budget: float, head_rows: float | None = None) -> tuple[np.ndarray, ...]:
    """Returns N, D and the loss at a budget for models of all sizes, `[sizes]` each.

    The FLOPs are a smooth curve through those of the paper's models, whose layers are whole numbers.
    """
    known, flops = model_sizes(range(128, 8193, 128), head_rows=head_rows)
    params = np.geomspace(known[0], known[-1], 20_000)
    smooth = np.polynomial.Polynomial.fit(np.log(known), np.log(flops), 4)
    tokens = budget / np.exp(smooth(np.log(params)))
    return params, tokens, SODA_SURFACE.loss(params, tokens)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Batch size, learning rate and steps of the runs of a budget, `[widths]` each."""

    batch: np.ndarray
    lr: np.ndarray
    steps: np.ndarray


def _choice(budget: float, widths: np.ndarray, max_lr: float) -> _Choice:
    _, flops = model_sizes(widths)
    sizes = np.array(
        [
            batch(budget, one / 3, int(width), LENGTH, max_lr)
            for width, one in zip(widths, flops, strict=True)
        ]
    )
    rates = np.array([peak_lr(width, size) for width, size in zip(widths, sizes, strict=True)])
    return _Choice(sizes, rates, budget / (flops * sizes * LENGTH))


@styled
def lr_cap_figure() -> "Figure":
    """Returns batch size, learning rate and steps over the width, with and without the cap."""
    figure, (batches, rates, steps) = subplots(1, 3, (10.8, 4.2), layout="constrained")
    widths = np.arange(128, 2049, 128)
    for index, budget in enumerate(_CAPPED_BUDGETS):
        capped, free = (_choice(budget, widths, limit) for limit in (0.01, math.inf))
        color, marker = PALETTE[index], MARKERS[index]
        for one, line, fill in ((free, ":", "none"), (capped, "-", color)):
            label = f"{budget_text(budget)}, {'without' if one is free else 'with'} the cap"
            order = 3 if one is capped else 2
            for axis, values in ((batches, one.batch), (rates, one.lr), (steps, one.steps)):
                axis.plot(
                    *(widths, values, line), color=color, marker=marker, markerfacecolor=fill,
                    markersize=4.5, zorder=order, label=label,
                )  # fmt: skip
    rates.axhline(0.01, color=GRAY, linewidth=1.2)
    steps.axhline(soda().max_steps, color=GRAY, linewidth=1.2)
    batches.axhline(soda().min_batch, color=GRAY, linewidth=1.2)
    rates.text(2048, 0.0104, "cap 0.01", ha="right", va="bottom", fontsize=8)
    steps.text(2048, 420_000, "400,000 steps", ha="right", va="bottom", fontsize=8)
    batches.text(128, 7.2, "smallest batch, 8", ha="left", va="top", fontsize=8)
    for axis, label in ((batches, "batch, windows"), (rates, "peak learning rate")):
        log_factors(axis, "x", "width")
        log_factors(axis, "y", label)
    log_factors(steps, "x", "width")
    log_counts(steps, "y", "steps")
    handles, labels = batches.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


@styled
def head_figure() -> "Figure":
    """Returns the share of the head in the FLOPs, and the shift of the optimum with a legal head."""
    figure, (shares, moves) = subplots(1, 2, (10.8, 4.2), layout="constrained")
    legal = legal_head_rows(VocabularyLayout.soda())
    names = (("all 144,644 ids", None), (f"legal ids, {legal:,.0f} on average", legal))
    for index, (label, rows) in enumerate(names):
        _, flops = model_sizes(_WIDTHS, head_rows=rows)
        head = 6 * _WIDTHS * (VOCABULARY if rows is None else rows)
        style: Any = {"color": PALETTE[index], "marker": MARKERS[index], "markersize": 4}
        shares.plot(_WIDTHS, 100 * head / flops, LINES[index], label=label, **style)
    shares.set_ylim(0, 100)
    log_factors(shares, "x", "width")
    shares.set_ylabel("share of the head in the FLOPs, %")
    shares.legend()
    found = []
    for budget in np.geomspace(1e18, 1e22, 17):
        optima = []
        for head_rows in (None, legal):
            params, tokens, loss = _losses(budget, head_rows)
            best = int(loss.argmin())
            optima.append((params[best], tokens[best]))
        found.append((budget, optima[1][0] / optima[0][0], optima[1][1] / optima[0][1]))
    budgets, params, tokens = np.array(found).T
    for index, (values, label) in enumerate(((params, "N*"), (tokens, "D*"))):
        style = {"color": PALETTE[index], "marker": MARKERS[index], "markersize": 4}
        moves.plot(budgets, values, LINES[index], label=f"{label}, legal / all ids", **style)
    moves.axhline(1, color=GRAY, linewidth=1)
    moves.set_xscale("log")
    log_budgets(moves, "x")
    moves.set_ylabel("optimum, legal head / full head")
    moves.legend()
    return figure
