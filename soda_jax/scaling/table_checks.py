"""Finds runs in a table that must not be fitted together, or that contradict each other."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.scaling.runs import Runs

# Runs that differ in one of these must not be fitted together: their losses are not comparable.
_SAME = ("experiment", "vocabulary", "normalizer", "head", "tokenizer")
_CONTRADICTION = math.log(2)


def check_comparable(
    file: str, table: Mapping[str, list[Any]], lines: Sequence[int]
) -> dict[str, str]:
    """Returns the value of each column that must be the same in all rows.

    Raises:
      UserError: if the rows have several values of one of them.
    """
    same = {}
    for column in _SAME:
        if column in table:
            values = list(dict.fromkeys(str(table[column][line]) for line in lines))
            if len(values) > 1:
                raise UserError(
                    f"{file} mixes {len(values)} values of {column} ({some(values)}), whose losses "
                    f"cannot be compared; add --select {column}={values[0]}"
                )
            same[column] = values[0]
    return same


def study_of(file: str, table: Mapping[str, list[Any]], lines: Sequence[int]) -> dict[str, int]:
    """Returns the vocabulary and the length of a window, if the table has the columns of a plan.

    Raises:
      UserError: if the runs differ in them.
    """
    needed = ("params_total", "params_one_head", "width", "tokens", "batch", "steps")
    if any(name not in table for name in needed):
        return {}
    cells = np.array([[number(table[name][line]) for line in lines] for name in needed])
    complete = np.isfinite(cells).all(0)
    if not complete.any():
        return {}
    value = dict(zip(needed, cells[:, complete], strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = {
            "vocabulary": (value["params_total"] - value["params_one_head"]) / value["width"],
            "length": value["tokens"] / (value["batch"] * value["steps"]),
        }
    if any(not np.array_equal(size, np.round(size)) or size.min() < 1 for size in sizes.values()):
        return {}  # columns of these names that are not those of a plan
    for name, size in sizes.items():
        if len(np.unique(size)) > 1:
            raise UserError(
                f"{file} mixes runs whose {name} is {some(map(int, np.unique(size)))}, whose losses "
                "cannot be compared; fit a table of one study"
            )
    return {name: round(size[0]) for name, size in sizes.items()}


def consistent(file: str, runs: Runs, lines: Sequence[int], set_aside: list[str]) -> np.ndarray:
    """Returns which budgets agree with params and tokens, bool `[runs]`.

    C / (6ND) depends on how the study counts parameters and FLOPs, but changes slowly with the size
    of the model. A run contradicts the others if it is off their robust trend by a factor of 2.
    """
    ratio = np.log(runs.budget / (6 * runs.params * runs.tokens))
    middle = float(np.median(ratio))
    if abs(middle) > math.log(20):
        raise UserError(
            f"{file}: budgets are {math.exp(middle):.2g} × 6 · params · tokens in the median run; "
            "budgets must be FLOPs, params and tokens plain counts"
        )
    trend = np.full(len(runs), middle)
    if len(np.unique(runs.params)) > 2:
        from scipy.stats import theilslopes

        slope, offset, *_ = theilslopes(ratio, np.log(runs.params))
        trend = offset + slope * np.log(runs.params)
    chosen = np.abs(ratio - trend) <= _CONTRADICTION
    for index in np.flatnonzero(~chosen).tolist():
        usual = math.exp(trend[index]) * 6 * runs.params[index] * runs.tokens[index]
        set_aside.append(
            f"row {lines[index] + 1}: budget = {runs.budget[index]:g} contradicts params = "
            f"{runs.params[index]:g} and tokens = {runs.tokens[index]:g}, which take about {usual:.2g}"
        )
    return chosen


def unrepeated(
    file: str,
    runs: Runs,
    lines: Sequence[int],
    set_aside: list[str],
    keep: bool,
    usable: np.ndarray,
) -> np.ndarray:
    """Returns which of the `usable` runs, bool `[runs]`, to use: of identical rows only the first."""
    chosen = usable.copy()
    seen: dict[tuple[float, ...], int] = {}
    table = np.stack([runs.budget, runs.params, runs.tokens], 1)
    for index in np.flatnonzero(usable).tolist():
        key = tuple(table[index].tolist())
        first = seen.setdefault(key, index)
        if runs.loss[first] != runs.loss[index] and not keep:
            raise UserError(
                f"{file}: rows {lines[first] + 1} and {lines[index] + 1} are the same run with "
                f"losses {runs.loss[first]:g} and {runs.loss[index]:g}; remove one, or add "
                "--keep_repeats to fit both"
            )
        first = seen.setdefault((*key, float(runs.loss[index])), index)
        if first != index:
            chosen[index] = False
            set_aside.append(f"row {lines[index] + 1}: the same run as row {lines[first] + 1}")
    return chosen


def some(values: Any) -> str:
    """Returns up to eight different values as text."""
    different = list(dict.fromkeys(str(value) for value in values))
    return ", ".join(different[:8]) + (", …" if len(different) > 8 else "")


def number(value: Any) -> float:
    """Returns the number in a cell; NaN for text and for an empty cell."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
