"""Writes the figures of a study and its HTML report.

Each part is a function from `Content` to HTML; a part without data states the reason.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from soda_jax.files import write_atomic
from soda_jax.report import figures
from soda_jax.report.elements import escaped, page, section, table
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
from soda_jax.scaling.figures.style import budget_text
from soda_jax.scaling.runs import Runs
from soda_jax.scaling.summary import count

NAMES = (
    "isoflop", "optima", "contours", "classes", "class_optima", "measured", "held_out",
)  # fmt: skip
_UTC = "+00:00"
_LISTED = 8  # longer lists are collapsed
_COEFFICIENTS = ("alpha", "beta", "E", "A", "B", "a", "b")
_METHODS = {
    "variable_projection": "variable projection",
    "approach3": "approach 3",
    "approach2": "approach 2",
}


@dataclasses.dataclass(frozen=True)
class Content:
    """What a report shows.

    Attributes:
      fitted: the runs and their fits.
      held_out: runs that were not fitted, or None.
      known: their predictions.
      drawn: the figures by name.
    """

    fitted: FittedRuns
    held_out: Runs | None
    known: Sequence[Prediction]
    drawn: Mapping[str, Drawn]


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
        _coefficients(content),
        *(_figure(content, name) for name in ("isoflop", "optima", "contours")),
        *(_figure(content, name) for name in ("classes", "class_optima")),
        _class_table(content),
        _figure(content, "measured"),
        _left_out(content),
        _figure(content, "held_out"),
        _held_out_table(content),
        _notes(content),
        _facts(content),
        _runs_table(content),
    ]
    return page(title or f"Scaling laws of {file}", intro, "".join(parts))


def _figure(content: Content, name: str) -> str:
    one = content.drawn.get(name)
    if one is None:
        return ""
    picture = figures.svg(one.figure, one.title)
    return section(one.title, f'<p>{escaped(one.caption)}</p><div class="card">{picture}</div>')


def _coefficients(content: Content) -> str:
    """Returns the section with the three methods side by side."""
    fit = content.fitted.fit
    rows = []
    for name, label in _METHODS.items():
        values = fit[name]
        if values is None:
            reason = f"<small>no result: {escaped(fit['approach2_reason'])}</small>"
            rows.append([label + reason, *["–"] * (len(_COEFFICIENTS) + 1)])
            continue
        ranges = fit.get("intervals", {}).get(name, {})
        cells = [_ranged(values.get(key), ranges.get(key)) for key in _COEFFICIENTS]
        huber = values.get("huber")
        rows.append([label, *cells, "–" if huber is None else f"{1e6 * huber:.3g}"])
    head = ["method", "α", "β", "E", "A", "B", "a", "b", "Huber, 1e-6"]
    law = fit["flops_law"]
    note = (
        "<p>L = E + A/N<sup>α</sup> + B/D<sup>β</sup> in nats, N in millions of parameters, D in billions "
        "of tokens; N* ∝ C<sup>a</sup> and D* ∝ C<sup>b</sup>. Approach 2 has only a and b. The FLOPs of "
        f"the table are C ≈ {law['constant']:.3g} · N<sup>{law['power']:.3f}</sup> · D. Small numbers: 95% "
        "intervals.</p>"
    )
    bias = fit.get("approach2_bias")
    more = ""
    if bias:
        more = (
            f"<p>Approach 2 on noise-free losses of the fitted surface, on this grid: a is off by "
            f"{bias['a']:+.4f}, b by {bias['b']:+.4f}; at {budget_text(bias['budget'])} FLOPs N* is "
            f"{bias['params_factor']:.3f} × and D* {bias['tokens_factor']:.3f} × the optimum.</p>"
        )
    counts = [
        [escaped(name), *(_value(one["variable_projection"].get(key)) for key in _COEFFICIENTS)]
        for name, one in fit.get("parameter_counts", {}).items()
    ]
    others = ""
    if counts:
        others = "<h3>Other parameter counts, variable projection</h3>" + table(
            ["count", "α", "β", "E", "A", "B", "a", "b"], counts
        )
    return section("Fits", note + table(head, rows) + more + others)


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _ranged(value: float | None, around: Sequence[float] | None) -> str:
    if value is None:
        return "–"
    return _value(value) + (f"<small>{around[0]:.4g} – {around[1]:.4g}</small>" if around else "")


def _class_table(content: Content) -> str:
    """Returns a table with the fit of each class by variable projection."""
    fit = content.fitted.fit
    rows = []
    for name in content.fitted.classes:
        one = fit["classes"][name]
        ranges = one.get("intervals", {}).get("variable_projection", {})
        values = one["variable_projection"]
        cells = [_ranged(values.get(key), ranges.get(key)) for key in _COEFFICIENTS]
        errors = one.get("left_out_error") or {}
        mean = [100 * error["mean_absolute"] for error in errors.values()]
        rows.append([escaped(titled(name)), *cells, f"{np.mean(mean):.2f}" if mean else "–"])
    if not rows:
        return ""
    head = ["class", "α", "β", "E", "A", "B", "a", "b", "left-out error, %"]
    note = (
        "<p>Variable projection. The last column is the mean absolute error of a budget that is left out "
        "of the fit.</p>"
    )
    return section("Fit of each class", note + table(head, rows))


def _left_out(content: Content) -> str:
    """Returns a table with the errors of each budget that is left out of the fit."""
    rows = [
        [budget_text(float(name)), f"{100 * one['mean']:+.3f}", f"{100 * one['mean_absolute']:.3f}"]
        for name, one in (content.fitted.fit.get("left_out_error") or {}).items()
    ]
    return table(["budget left out", "mean error, %", "mean absolute, %"], rows) if rows else ""


def _held_out_table(content: Content) -> str:
    """Returns a table with predicted and measured loss of each held-out run and class."""
    if content.held_out is None:
        return ""
    rows = []
    held_out = content.held_out
    for run in range(len(held_out)):
        for one in content.known:
            if not np.isfinite(one.measured[run]):
                continue
            low, high = one.interval[:, run]
            around = f"<small>{low:.4f} – {high:.4f}</small>" if np.isfinite(low) else ""
            rows.append(
                [
                    budget_text(held_out.budget[run]),
                    count(held_out.params[run]),
                    count(held_out.tokens[run]),
                    escaped(titled(one.name)),
                    f"{one.predicted[run]:.4f}{around}",
                    f"{one.measured[run]:.4f}",
                    f"{100 * one.error[run]:+.2f}",
                ]
            )
    head = ["budget", "N", "D", "class", "predicted, nats", "measured, nats", "error, %"]
    source = escaped(str(held_out.source.get("file", "")))
    return f"<p>Runs of {source}, which are not part of the fit.</p>" + table(
        head, rows, texts=(3,)
    )


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


def _facts(content: Content) -> str:
    """Returns the section with the source of the runs."""
    source = content.fitted.runs.source
    fit = content.fitted.fit
    facts = {
        "table": source.get("file"),
        "SHA-256": source.get("sha256"),
        "columns": ", ".join(f"{key}: {name}" for key, name in source.get("columns", {}).items()),
        "selection": ", ".join(f"{key}={value}" for key, value in source["select"].items()),
        "vocabulary": source.get("vocabulary"),
        "tokens per window": source.get("length"),
        "bootstrap draws": fit.get("intervals", {}).get("draws"),
        "seed": fit.get("intervals", {}).get("seed"),
    }
    rows = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return section("Source", f'<div class="card"><dl>{rows}</dl></div>')


def _runs_table(content: Content) -> str:
    """Returns the section with all runs, collapsed."""
    fitted, runs = content.fitted, content.fitted.runs
    predicted = fitted.surface.loss(runs.params, runs.tokens)
    sizes = [name for name in ("width", "lr") if name in runs.details]
    times = [name for name in ("started", "ended") if name in runs.details]
    rows = []
    for index in np.lexsort((runs.params, runs.budget)).tolist():
        classes = [_value(float(runs.classes[name][index])) for name in runs.classes]
        rows.append(
            [
                budget_text(runs.budget[index]),
                count(runs.params[index]),
                count(runs.tokens[index]),
                *(escaped(_detail(runs.details[name][index])) for name in sizes),
                f"{runs.loss[index]:.4f}",
                f"{predicted[index]:.4f}",
                f"{100 * (predicted[index] / runs.loss[index] - 1):+.2f}",
                *("–" if value == "nan" else value for value in classes),
                *(escaped(_detail(runs.details[name][index])) for name in times),
            ]
        )
    names = (escaped(titled(name)) for name in runs.classes)
    head = ["budget", "N", "D", *sizes, "loss", "fitted", "error, %", *names, *times]
    shown = f"<details><summary>{len(rows)} runs</summary>{table(head, rows)}</details>"
    return section("Runs", shown)


def _detail(cell: str) -> str:
    """Returns a cell of the table: a number with four digits, a time in UTC without its offset."""
    try:
        value = float(cell)
    except ValueError:
        if cell.endswith(_UTC):
            return f"{cell.removesuffix(_UTC).replace('T', ' ')} UTC"
        return cell or "–"
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
