"""Reads the results of IsoFLOP runs from CSV or Parquet, and sets bad rows aside by name."""

import csv
import dataclasses
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.scaling.runs import DETAILS, PARAMETER_COUNTS, Runs
from soda_jax.scaling.table_checks import (
    check_comparable,
    consistent,
    number,
    some,
    study_of,
    unrepeated,
)

_CLASS = "loss/"
_SAME_BUDGET = 0.05  # achieved budgets, and those that follow from N and D, are not exactly equal


def read_runs(
    file: str,
    select: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    keep_repeats: bool = False,
    near_best: float = 0.0,
) -> Runs:
    """Reads a table of runs.

    Two of budget, tokens and params are enough: the third follows from C = 6ND. Runs whose budgets
    differ by less than 5% belong to one curve.

    Args:
      file: a CSV file, or a Parquet file (`.parquet`).
      select: rows to read: column -> value.
      columns: column that contains the budget, tokens, params or loss, where its name differs.
      keep_repeats: whether runs of the same model, tokens and budget with different losses are kept.
      near_best: keep only runs whose loss is at most this many nats above the lowest of their budget;
        0 keeps all. Runs of very few steps do not follow the law of those near the optimum.

    Raises:
      UserError: if the file is unreadable, columns are missing, no rows are left, experiments,
        vocabularies or normalizers are mixed, or runs are repeated.
    """
    table, digest = read_table(file)
    lines = select_rows(file, table, select or {})
    names = _find_columns(file, table, columns or {})
    set_aside: list[str] = []
    lines = _measured(file, table, lines, names, set_aside)
    # Only now: a run that is not finished has no vocabulary.
    same = check_comparable(file, table, lines)

    def numbers(column: str) -> np.ndarray:
        return np.array([number(table[column][line]) for line in lines])

    sizes, note = _complete({key: numbers(column) for key, column in names.items()})
    others = [name for name in PARAMETER_COUNTS if name in table and name != names.get("params")]
    counts = {name: numbers(name) for name in others}
    classes = [name for name in table if name.startswith(_CLASS) and name != f"{_CLASS}all"]
    budget, joined = _joined(sizes["budget"])
    notes = [note, joined]
    for name in (*others, *classes):
        values = numbers(name)
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0))).tolist()
        if bad:
            cell = table[name][lines[bad[0]]]
            notes.append(
                f"{name} is {cell if cell not in (None, '') else 'empty'} in row {lines[bad[0]] + 1}"
                + f" and not a number above 0 in {len(bad)} rows" * (len(bad) > 1)
                + (", so it is not fitted" if name in others else ", which its fit leaves out")
            )
            counts.pop(name, None)
    runs = Runs(
        budget=budget,
        params=sizes["params"],
        tokens=sizes["tokens"],
        loss=sizes["loss"],
        counts=counts,
        classes={name.removeprefix(_CLASS): numbers(name) for name in classes},
        notes=tuple(line for line in notes if line),
        source={
            "file": Path(file).name,
            "sha256": digest,
            "columns": names,
            "select": dict(select or {}),
            "near_best": near_best,
            **study_of(file, table, lines),
            "comparable": same,
        },
        details={
            name: np.array([_text(table[name][line]) for line in lines])
            for name in DETAILS
            if name in table
        },
    )
    chosen = np.ones(len(runs), bool) if note else consistent(file, runs, lines, set_aside)
    chosen = unrepeated(file, runs, lines, set_aside, keep_repeats, chosen)
    runs = dataclasses.replace(runs.take(chosen), set_aside=tuple(set_aside))
    return _near_best(runs, near_best) if near_best else runs


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell)


def _near_best(runs: Runs, nats: float) -> Runs:
    """Returns the runs whose loss is within `nats` of the lowest of their budget, with a note."""
    lowest = {budget: runs.loss[runs.budget == budget].min() for budget in np.unique(runs.budget)}
    near = runs.loss <= np.array([lowest[budget] for budget in runs.budget]) + nats
    line = (
        f"{int((~near).sum())} runs are more than {nats:g} nats above the best of their budget and are not "
        "used"
    )
    return dataclasses.replace(runs.take(near), notes=(*runs.notes, line))


def _measured(
    file: str,
    table: Mapping[str, list[Any]],
    lines: Sequence[int],
    names: Mapping[str, str],
    set_aside: list[str],
) -> list[int]:
    """Returns the rows in which all of `names` are finite and above 0; the others are set aside."""
    kept = []
    for line in lines:
        cells = {column: table[column][line] for column in names.values()}
        values = {column: number(cell) for column, cell in cells.items()}
        bad = [name for name, value in values.items() if not 0 < value < math.inf]
        if bad:
            what = ", ".join(f"{name} = {cells[name]}" for name in bad)
            set_aside.append(f"row {line + 1}: {what}")
        else:
            kept.append(line)
    if not kept:
        raise UserError(
            f"{file} has no usable row; the first is set aside because of {set_aside[0]}: "
            f"{', '.join(names.values())} must be numbers above 0"
        )
    return kept


def read_table(file: str) -> tuple[dict[str, list[Any]], str]:
    """Returns the columns of a table and the SHA-256 of the file."""
    try:
        content = Path(file).read_bytes()
        if Path(file).suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                table = pq.read_table(pa.BufferReader(content)).to_pydict()
            except pa.ArrowException as error:
                raise ValueError(error) from None
        else:
            table = _read_csv(content.decode("utf-8-sig"))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {error}; give a CSV or Parquet table") from None
    if not table or not next(iter(table.values())):
        raise UserError(f"{file} has no rows; give a table with one row per run")
    return table, hashlib.sha256(content).hexdigest()


def _read_csv(text: str) -> dict[str, list[Any]]:
    """Returns the columns of a CSV table; a short row has None in its last columns.

    Raises:
      ValueError: if two columns have one name, or a row has more cells than there are columns.
    """
    header, *rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row] or [[]]
    names = [name for name in header if name]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"two columns are called {repeated[0]}")
    for number_of_row, row in enumerate(rows, start=1):
        if len(row) > len(header):
            raise ValueError(
                f"row {number_of_row} has {len(row)} cells, but there are {len(header)} columns"
            )
    return {
        name: [row[index] if index < len(row) else None for row in rows]
        for index, name in enumerate(header)
        if name
    }


def select_rows(file: str, table: Mapping[str, list[Any]], select: Mapping[str, str]) -> list[int]:
    """Returns the indices of the rows that `select` describes."""
    lines = list(range(len(next(iter(table.values())))))
    for column, wanted in select.items():
        if column not in table:
            raise UserError(f"--select {column}={wanted}: {file} has columns {', '.join(table)}")
        found = [line for line in lines if _same_value(table[column][line], wanted)]
        if not found:
            raise UserError(
                f"--select {column}={wanted}: no such row in {file}; it has "
                f"{some(table[column][line] for line in lines)}"
            )
        lines = found
    return lines


def _same_value(value: Any, wanted: str) -> bool:
    return str(value) == wanted or number(value) == number(wanted)


def _find_columns(
    file: str, table: Mapping[str, list[Any]], given: Mapping[str, str]
) -> dict[str, str]:
    """Returns the column of budget, params, tokens and loss; without a column the key is absent."""
    usual = {
        "budget": ("budget",),
        "params": ("params", "params_total"),
        "tokens": ("tokens",),
        "loss": ("loss", "loss/all"),
    }
    found: dict[str, str] = {}
    for key, candidates in usual.items():
        if key in given and given[key] not in table:
            raise UserError(
                f"--{key}={given[key]}: {file} has no such column, but {', '.join(table)}"
            )
        candidates = (given[key],) if key in given else candidates
        column = next((name for name in candidates if name in table), "")
        if column:
            found[key] = column
    sizes = [key for key in ("budget", "params", "tokens") if key in found]
    if "loss" not in found or len(sizes) < 2:
        missing = [key for key in usual if key not in found]
        raise UserError(
            f"{file} has no column {' or '.join(missing)}, but {', '.join(table)}; name it with "
            f"--{missing[-1]}=COLUMN"
        )
    return found


def _complete(numbers: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Adds the missing one of budget, params and tokens by C = 6ND; returns a note about it or ""."""
    if "params" not in numbers:
        added, note = numbers["budget"] / (6 * numbers["tokens"]), "budget / (6 · tokens)"
        return {**numbers, "params": added}, f"params = {note}"
    if "tokens" not in numbers:
        added, note = numbers["budget"] / (6 * numbers["params"]), "budget / (6 · params)"
        return {**numbers, "tokens": added}, f"tokens = {note}"
    if "budget" not in numbers:
        added = 6 * numbers["params"] * numbers["tokens"]
        return {**numbers, "budget": added}, "budget = 6 · params · tokens"
    return numbers, ""


def _joined(budget: np.ndarray) -> tuple[np.ndarray, str]:
    """Returns the budgets, equal within a curve, and a note about it or "".

    Budgets that are less than 5% above the smallest of a curve belong to it and are replaced by the
    geometric mean of the curve, which leaves the FLOPs of the table unbiased.
    """
    joined, curve = budget.copy(), np.zeros(len(budget), int)
    first, number_of_curve = 0.0, 0
    for index in np.argsort(budget, kind="stable"):
        if budget[index] > first * (1 + _SAME_BUDGET):
            first, number_of_curve = budget[index], number_of_curve + 1
        curve[index] = number_of_curve
    for one in np.unique(curve):
        inside = curve == one
        if len(np.unique(budget[inside])) > 1:
            joined[inside] = np.exp(np.log(budget[inside]).mean())
    before, after = len(np.unique(budget)), len(np.unique(joined))
    note = f"{before} budgets that differ by less than {_SAME_BUDGET:.0%} are {after} curves"
    return joined, note if before > after else ""
