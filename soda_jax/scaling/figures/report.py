"""Writes the figures of a study and its HTML report.

Each part is a function from `Content` to HTML; a part without data states the reason.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from soda_jax.files import write_atomic
from soda_jax.report import figures
from soda_jax.report.elements import escaped, page, section
from soda_jax.scaling.figures.classes import class_optima_figure, classes_figure, titled
from soda_jax.scaling.figures.contours import contours_figure
from soda_jax.scaling.figures.fitted import FittedRuns
from soda_jax.scaling.figures.isoflop import isoflop_figure
from soda_jax.scaling.figures.measured import (
    Prediction,
    held_out_figure,
    measured_figure,
    predictions,
)
from soda_jax.scaling.figures.optima import optima_figure
from soda_jax.scaling.figures.output import FORMATS, Drawn, write_figures
from soda_jax.scaling.figures.report_tables import (
    Content,
    classes_section,
    coefficients_section,
    held_out_table,
    left_out_table,
    runs_section,
    source_section,
)
from soda_jax.scaling.figures.style import budget_text
from soda_jax.scaling.runs import Runs

NAMES = (
    "isoflop", "optima", "contours", "classes", "class_optima", "measured", "held_out",
)  # fmt: skip
_LISTED = 8  # longer lists are collapsed


def write_scaling_report(
    out: str,
    fitted: FittedRuns,
    held_out: Runs | None = None,
    title: str | None = None,
    formats: Collection[str] = FORMATS,
) -> list[str]:
    """Writes the figures and `report.html` into a folder; nothing is written before all is rendered.

    Args:
      out: the folder.
      fitted: the runs and their fits.
      held_out: runs that were not fitted.
      title: heading of the page.
      formats: formats of the figures, "svg" and "png".

    Returns:
      Lines about what was written and what was left out.

    Raises:
      UserError: if matplotlib is missing, or the held-out runs cannot be compared.
    """
    figures.require_matplotlib()
    known = predictions(fitted, held_out) if held_out is not None else []
    drawn = {one.name: one for one in _drawn(fitted, held_out, known)}
    html = _render(Content(fitted, held_out, known, drawn), title)
    absent = [name for name in NAMES if name not in drawn]
    files = write_figures(out, list(drawn.values()), formats, absent)
    write_atomic(Path(out) / "report.html", html)
    lines = [f"wrote report.html, {', '.join(files)} to {out}"]
    return lines + [f"left out: {reason}" for reason in missing(fitted, held_out)]


def missing(fitted: FittedRuns, held_out: Runs | None) -> list[str]:
    """Returns a line with the reason for each part of a report that has no data."""
    lines = []
    fit = fitted.fit
    if not fitted.runs.classes:
        lines.append("classes of tokens: the table has no column loss/CLASS")
    for name, one in fit["classes"].items():
        if name not in fitted.classes:
            lines.append(f"class {name}: {one.get('reason', 'it has no fit')}")
    if not len(fitted.draws):
        lines.append("intervals: the fit has no bootstrap draws (--bootstrap=0)")
    else:
        lines.append("interval of approach 3: it is not repeated for the bootstrap draws")
    if fit["approach2"] is None:
        lines.append(f"approach 2: {fit['approach2_reason']}")
    if not np.isfinite(fitted.optimum(fitted.surface, fitted.budgets)[0]).any():
        lines.append("optimum of the surface: A, B or the power of N in the FLOPs is not above 0")
    for name, one in fitted.classes.items():
        if not np.isfinite(fitted.optimum(one.surface, fitted.budgets)[0]).any():
            lines.append(f"optimum of class {name}: A or B of its surface is 0")
    if not fit.get("left_out_error"):
        lines.append("predictions without a budget: fewer than 6 runs remain without any budget")
    if held_out is None:
        lines.append("held-out runs: no table was given (--held_out)")
    return lines


def _drawn(fitted: FittedRuns, held_out: Runs | None, known: Sequence[Prediction]) -> list[Drawn]:
    found = [
        Drawn(
            "isoflop",
            "IsoFLOP curves",
            "One curve per budget against N and against D. Markers: runs; solid: slices of the surface "
            "fitted by variable projection; dashed: parabolas of approach 2; stars and diamonds: their "
            "minima.",
            isoflop_figure(fitted),
        ),
        Drawn(
            "optima",
            "Optimum of each budget",
            "N*(C) and D*(C) by all three methods, under the FLOPs of the table, not 6ND. Bands: 95% "
            "intervals of the bootstrap; approach 3 has none. Diamonds: minima of the parabolas; dashes: runs.",
            optima_figure(fitted),
        ),
        Drawn(
            "contours",
            "Loss surface",
            "Contours of the fitted loss in nats, the runs, and the efficient frontier, N*(C) and D*(C). Dotted: equal FLOPs.",
            contours_figure(fitted),
        ),
    ]
    if fitted.classes:
        found += [
            Drawn(
                "classes",
                "Classes of tokens",
                "Loss of each class against N, one curve per budget. Markers: runs; lines: the surface of the "
                "class; stars: its minima within the tried sizes.",
                classes_figure(fitted),
            ),
            Drawn(
                "class_optima",
                "Optimum of each class",
                "N* of each class by variable projection, and 95% intervals of the bootstrap. Gray band in the "
                "middle: the tried sizes.",
                class_optima_figure(fitted),
            ),
        ]
    found.append(
        Drawn(
            "measured",
            "Predicted against measured",
            "Loss of each run by the fit to all runs, and by a fit without the runs of its budget.",
            measured_figure(fitted, held_out, list(known)),
        )
    )
    if held_out is not None:
        found.append(
            Drawn(
                "held_out",
                "Held-out runs",
                "Relative error of the prediction for each class of tokens. Lines: 95% intervals of the "
                "fit; they do not contain the noise of a single run.",
                held_out_figure(held_out, list(known)),
            )
        )
    return found


def _render(content: Content, title: str | None) -> str:
    runs = content.fitted.runs
    a = content.fitted.fit["variable_projection"].get("a")
    file = runs.source.get("file", "a table")
    budgets = content.fitted.budgets
    law = ""
    if a is not None:
        b = content.fitted.fit["variable_projection"]["b"]
        law = f" Variable projection gives N* ∝ C^{a:.3f} and D* ∝ C^{b:.3f}."
    intro = (
        f"{len(runs)} runs of {file} at {len(budgets)} budgets, {budget_text(budgets[0])} to "
        f"{budget_text(budgets[-1])} FLOPs.{law}"
    )
    parts = [
        coefficients_section(content),
        *(_figure(content, name) for name in ("isoflop", "optima", "contours")),
        *(_figure(content, name) for name in ("classes", "class_optima")),
        classes_section(content),
        _figure(content, "measured"),
        left_out_table(content),
        _figure(content, "held_out"),
        held_out_table(content),
        _notes(content),
        source_section(content),
        runs_section(content),
    ]
    return page(title or f"Scaling laws of {file}", intro, "".join(parts))


def _figure(content: Content, name: str) -> str:
    one = content.drawn.get(name)
    if one is None:
        return ""
    picture = figures.svg(one.figure, one.title)
    return section(one.title, f'<p>{escaped(one.caption)}</p><div class="card">{picture}</div>')


def _notes(content: Content) -> str:
    """Returns the sections with warnings, set-aside rows, assumptions and missing parts."""
    fit = content.fitted.fit
    html = ""
    by_class = [
        f"{titled(name)}: {line}"
        for name, one in fit["classes"].items()
        for line in one.get("warnings", ())
    ]
    held = content.held_out.set_aside if content.held_out is not None else ()
    groups = (
        ("Warnings", list(fit["warnings"])),
        ("Warnings about classes", by_class),
        ("Rows set aside", [*fit.get("set_aside", ()), *(f"held-out table, {x}" for x in held)]),
        ("Assumptions", list(fit.get("notes", ()))),
        ("Left out of this page", missing(content.fitted, content.held_out)),
    )
    for title, lines in groups:
        if lines:
            items = "".join(f"<li>{escaped(line)}</li>" for line in lines)
            listed = f"<ul>{items}</ul>"
            if len(lines) > _LISTED:
                listed = f"<details><summary>{len(lines)} lines</summary>{listed}</details>"
            html += section(title, f'<div class="card">{listed}</div>')
    return html
