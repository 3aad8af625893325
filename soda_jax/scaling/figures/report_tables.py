"""Renders the tables of the HTML report of a study."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from soda_jax.report.elements import escaped, section, table
from soda_jax.scaling.figures.classes import titled
from soda_jax.scaling.figures.fitted import FittedRuns
from soda_jax.scaling.figures.measured import Prediction
from soda_jax.scaling.figures.output import Drawn
from soda_jax.scaling.figures.style import budget_text
from soda_jax.scaling.runs import Runs
from soda_jax.scaling.summary import count

_COEFFICIENTS = ("alpha", "beta", "E", "A", "B", "a", "b")
_METHODS = {
    "variable_projection": "variable projection",
    "approach3": "approach 3",
    "approach2": "approach 2",
}
_UTC = "+00:00"


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


def coefficients_section(content: Content) -> str:
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


def classes_section(content: Content) -> str:
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


def left_out_table(content: Content) -> str:
    """Returns a table with the errors of each budget that is left out of the fit."""
    rows = [
        [budget_text(float(name)), f"{100 * one['mean']:+.3f}", f"{100 * one['mean_absolute']:.3f}"]
        for name, one in (content.fitted.fit.get("left_out_error") or {}).items()
    ]
    return table(["budget left out", "mean error, %", "mean absolute, %"], rows) if rows else ""


def held_out_table(content: Content) -> str:
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


def source_section(content: Content) -> str:
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


def runs_section(content: Content) -> str:
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
