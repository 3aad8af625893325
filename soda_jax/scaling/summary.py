"""Prints a plan and a fit as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from soda_jax.scaling.grid import Plan


def plan_text(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the runs of a plan as a table, with totals and the candidates that are left out."""
    timed = "hours" in rows[0]
    lines = [
        f"{'budget':>8} {'width':>6} {'layers':>6} {'heads':>5} {'batch':>5} {'steps':>8} {'lr':>8} "
        f"{'beta2':>7} {'params':>9} {'tokens':>9}" + f" {'hours':>8} {'chips':>5}" * timed
    ]
    for row in rows:
        line = (
            f"{row['budget']:>8.3g} {row['width']:>6} {row['layers']:>6} {row['heads']:>5} "
            f"{row['batch']:>5} {row['steps']:>8,} {row['lr']:>8.5f} {row['beta2']:>7.4f} "
            f"{count(row['params_total']):>9} {count(row['tokens']):>9}"
        )
        if timed:
            hours = "–" if row["hours"] == "" else f"{row['hours']:,.2f}"
            line += f" {hours:>8} {row['chips']:>5}"
        lines.append(line)
    flops, tokens = (sum(row[key] for row in rows) for key in ("flops", "tokens"))
    total = f"{len(rows)} runs, {flops:.3g} FLOPs, {count(tokens)} tokens"
    if timed:
        known = [row["hours"] * row["chips"] for row in rows if row["hours"] != ""]
        total += f", {sum(known):,.0f} chip hours"
        total += f" without {len(rows) - len(known)} runs" * (len(known) < len(rows))
    lines += ["", total, *(f"left out: {line}" for line in plan.left_out)]
    return "\n".join(lines)


def count(value: float) -> str:
    """Returns a count with three digits and a unit, such as 298M or 2.11B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= 0.9995 * unit:
            return f"{float(f'{value / unit:.3g}'):g}{name}"
    return f"{value:.3g}"


def fit_text(result: Mapping[str, Any]) -> str:
    """Returns the three fits of the scalar loss next to each other, the classes, and the warnings."""
    lines = [
        f"{result['n']} runs; L = E + A / N^alpha + B / D^beta, N in millions, D in billions",
        "",
        *_methods(result),
        "",
    ]
    if bias := result["approach2_bias"]:
        lines.append(
            f"bias of approach 2 on this grid: a {bias['a']:+.4f}, b {bias['b']:+.4f}; at "
            f"{bias['budget']:.3g} FLOPs N* × {bias['params_factor']:.3f}, D* × "
            f"{bias['tokens_factor']:.3f}"
        )
    if errors := result["left_out_error"]:
        values = ", ".join(
            f"{name}: {100 * error['mean_absolute']:.2f}%" for name, error in errors.items()
        )
        lines.append(f"mean error of a budget that is left out of the fit: {values}")
    for kind in ("parameter_counts", "classes"):
        for name, one in result.get(kind, {}).items():
            lines += ["", f"{name}:", *(_methods(one) if "approach3" in one else [one["reason"]])]
            lines += [f"warning: {line}" for line in one.get("warnings", ())]
    lines += _class_optima(result)
    notes = [f"note: {line}" for line in result.get("notes", ())]
    notes += [f"set aside: {line}" for line in result.get("set_aside", ())]
    notes += [f"warning: {line}" for line in result["warnings"]]
    return "\n".join([*lines, *([""] if notes else []), *notes])


_COLUMNS = ("alpha", "beta", "E", "A", "B", "a", "b")


def _methods(result: Mapping[str, Any]) -> list[str]:
    """Returns one line for each method, and one for the intervals if there are any."""
    lines = [f"{'':20}" + "".join(f"{name:>16}" for name in _COLUMNS) + f"{'Huber':>12}"]
    for name in ("variable_projection", "approach3", "approach2"):
        values = result[name]
        if values is None:
            lines.append(f"{name:20}  no result: {result['approach2_reason']}")
            continue
        cells = "".join(
            f"{'':>16}" if values.get(key) is None else f"{values[key]:>16.4f}" for key in _COLUMNS
        )
        huber = f"{values['huber']:>12.3e}" if "huber" in values else ""
        lines.append(f"{name:20}{cells}{huber}".rstrip())
        ranges = result.get("intervals", {}).get(name, {})
        if any(ranges.values()):
            cells = "".join(
                f"{f'{ranges[key][0]:.3f} – {ranges[key][1]:.3f}':>16}"
                if ranges.get(key)
                else f"{'':>16}"
                for key in _COLUMNS
            )
            lines.append(f"{'  95% interval':20}{cells}".rstrip())
    return lines


def _class_optima(result: Mapping[str, Any]) -> list[str]:
    """Returns N* and D* of each class at each budget, and how the classes differ."""
    classes = {name: one for name, one in result["classes"].items() if "optima" in one}
    if not classes:
        return []
    lines = ["", "optima of the classes by variable projection, FLOPs of the table:"]
    lines.append(f"{'class':12} {'FLOPs':>9} {'N*':>24} {'D*':>24} {'nats':>9}")
    for name, one in {"all": result, **classes}.items():
        for row in one["optima"]:
            cells = [_around(row, key, count) for key in ("params", "tokens")]
            loss = "–" if row["loss"] is None else f"{row['loss']:.4f}"
            lines.append(f"{name:12} {row['budget']:>9.3g} {cells[0]:>24} {cells[1]:>24} {loss:>9}")
    pairs = [one for one in result["class_differences"] if one.get("intervals")]
    if not pairs:
        return lines
    pairs = [one for one in pairs if one["intervals"]["params_ratio"]]
    lines += (
        ["", f"N* of one class divided by that of another at {pairs[0]['budget']:.3g} FLOPs:"]
        if pairs
        else []
    )
    for one in pairs:
        low, high = one["intervals"]["params_ratio"]
        verdict = "differs" if low > 1 or high < 1 else "not resolved"
        lines.append(
            f"{one['first']} / {one['second']}: {one['params_ratio']:.3g} [{low:.3g} – {high:.3g}], {verdict}"
        )
    if len(pairs) > 1:
        lines.append(
            f"each interval is at 95%: of {len(pairs)} pairs, about {len(pairs) / 20:.1f} differ by chance"
        )
    return lines


def _around(row: Mapping[str, Any], key: str, form: Any) -> str:
    if row[key] is None:
        return "–"
    known = row.get("intervals", {}).get(key)
    return form(row[key]) + (f" [{form(known[0])} – {form(known[1])}]" if known else "")


def prediction_text(rows: Sequence[Mapping[str, Any]], note: str) -> str:
    """Returns predictions as lines, with 95% intervals in brackets."""
    lines = [note]
    for row in rows:
        lines.append(_one_prediction(row))
        for name, loss in row.get("classes", {}).items():
            known = row.get("class_intervals", {}).get(name)
            line = f"  {name} {loss:.4f}" + (f" [{known[0]:.4f} – {known[1]:.4f}]" if known else "")
            if own := row.get("class_optima", {}).get(name):
                cells = [_around(own, key, count) for key in ("params", "tokens")]
                line += f" nats; its own optimum {cells[0]} parameters, {cells[1]} tokens"
            lines.append(line)
        if full := row.get("full_head"):
            lines.append(f"  with the head over all ids: {_one_prediction(full)}")
            moved = [_around(row, f"{key}_ratio", "{:.3f}".format) for key in ("params", "tokens")]
            line = f"  relative to it: N* × {moved[0]}, D* × {moved[1]}"
            if needed := row["full_budget_ratio"]:
                line += f"; it needs {needed:.3g} × the FLOPs for this loss"
            lines.append(line)
    return "\n".join(lines)


def _one_prediction(row: Mapping[str, Any]) -> str:
    parts = []
    for name, label, form in (
        ("budget", "FLOPs", "{:.3g}".format),
        ("params", "parameters", count),
        ("tokens", "tokens", count),
        ("tokens_per_parameter", "tokens per parameter", "{:.3g}".format),
        ("loss", "nats", "{:.4f}".format),
        ("over_training", "× the optimal tokens of this size", "{:.3g}".format),
    ):
        if row.get(name) is not None:
            parts.append(f"{_around(row, name, form)} {label}")
    return ", ".join(parts)
