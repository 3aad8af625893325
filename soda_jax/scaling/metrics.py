"""Rank correlation of downstream scores with the NLLs of the same runs.

Spearman's ρ is the correlation of ranks. Its 95% interval is that of a bootstrap which draws runs with
replacement; with fewer than about ten runs it is too narrow.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.scaling.bootstrap import interval
from soda_jax.scaling.table import read_table, select_rows
from soda_jax.scaling.table_checks import check_comparable, number

MIN_RUNS = 3
_LOSSES = "loss"


@dataclasses.dataclass(frozen=True)
class Correlations:
    """A table of correlations.

    Attributes:
      rows: one for each score and NLL: `score`, `loss`, `n`, the number of runs with both, `spearman`, and
        `low` and `high`, the 95% interval; None where it is not defined, with the reason in `notes`.
      notes: a line for each cell that is not used, and for each pair without a correlation.
    """

    rows: list[dict[str, Any]]
    notes: tuple[str, ...]


def correlations(
    file: str,
    scores: Sequence[str],
    losses: Sequence[str] = (),
    select: Mapping[str, str] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Correlations:
    """Returns Spearman's ρ of each score with each NLL over the runs of a table.

    Args:
      file: a CSV file, or a Parquet file (`.parquet`), with one row per run.
      scores: columns of scores.
      losses: columns of NLLs; empty takes `loss` and every column that begins with `loss/`.
      select: rows to read: column -> value.
      draws: resamples of the bootstrap; 0 for no intervals.
      seed: seed of the bootstrap.

    Raises:
      UserError: if the file is unreadable, a column is missing, no pair of columns has three runs, or
        experiments, vocabularies or normalizers are mixed.
    """
    table, _ = read_table(file)
    lines = select_rows(file, table, select or {})
    found = [name for name in table if name == _LOSSES or name.startswith(f"{_LOSSES}/")]
    losses = list(losses) or [name for name in found if name not in scores]
    for option, names in (("scores", scores), ("losses", losses)):
        if missing := [name for name in names if name not in table]:
            raise UserError(
                f"--{option}: {file} has no column {', '.join(missing)}, but {', '.join(table)}"
            )
    if not losses or not scores:
        raise UserError(
            f"{file}: give columns of scores with --scores and of NLLs with --losses; it has "
            f"{', '.join(table)}"
        )
    notes: list[str] = []
    values = {}
    for name in dict.fromkeys((*scores, *losses)):
        values[name] = np.array([number(table[name][line]) for line in lines])
        for index in np.flatnonzero(~np.isfinite(values[name])).tolist():
            cell = table[name][lines[index]]
            text = "empty" if cell in (None, "") else cell
            notes.append(f"row {lines[index] + 1}: {name} is {text}, so it is set aside")
    # Only rows that are used: a run that is not finished has no vocabulary.
    known = {name: np.isfinite(value) for name, value in values.items()}
    used = np.any([known[score] & known[loss] for score in scores for loss in losses], axis=0)
    if used.any():
        check_comparable(file, table, [lines[index] for index in np.flatnonzero(used)])
    rows = []
    for score in dict.fromkeys(scores):
        for loss in dict.fromkeys(losses):
            pair = np.stack([values[score], values[loss]])
            pair = pair[:, np.isfinite(pair).all(0)]
            row = {"score": score, "loss": loss, "n": pair.shape[1]}
            rho, low, high = _correlation(pair, draws, seed)
            if rho is None:
                few = pair.shape[1] < MIN_RUNS
                why = (
                    f"{pair.shape[1]} runs, {MIN_RUNS} are needed"
                    if few
                    else "a column is constant"
                )
                notes.append(f"{score}, {loss}: no correlation: {why}")
            elif low is None and draws:
                notes.append(
                    f"{score}, {loss}: no interval: a column is constant in more than 10% of the resamples"
                )
            rows.append({**row, "spearman": rho, "low": low, "high": high})
    if all(row["n"] < MIN_RUNS for row in rows):
        most = max(row["n"] for row in rows)
        raise UserError(
            f"{file} has {most} runs with a score and an NLL; a rank correlation needs at least {MIN_RUNS}"
        )
    return Correlations(rows, tuple(notes))


def _correlation(
    pair: np.ndarray, draws: int, seed: int
) -> tuple[float | None, float | None, float | None]:
    """Returns Spearman's ρ of `[2, runs]` and its 95% interval, each None if it is not defined."""
    from scipy.stats import spearmanr

    if pair.shape[1] < MIN_RUNS or (np.ptp(pair, axis=1) == 0).any():
        return None, None, None
    rho = float(spearmanr(*pair).statistic)
    if not draws:
        return rho, None, None
    random = np.random.default_rng(seed)
    chosen = pair[:, random.integers(pair.shape[1], size=(draws, pair.shape[1]))]
    constant = (np.ptp(chosen, axis=2) == 0).any(0)
    resampled = np.full(draws, math.nan)
    resampled[~constant] = _spearman(*chosen[:, ~constant])
    low, high = interval(resampled) or (None, None)
    return rho, low, high


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns Spearman's ρ of each row of two arrays `[draws, runs]`, equal values with mean ranks."""
    from scipy.stats import rankdata

    ranks = (rankdata(values, axis=1) for values in (first, second))
    x, y = (values - values.mean(1, keepdims=True) for values in ranks)
    return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def metrics_text(table: Correlations) -> str:
    """Returns one line per score and NLL, and the notes."""
    width = max(len(row[name]) for row in table.rows for name in ("score", "loss"))
    lines = [
        f"{'score':{width}}  {'NLL':{width}}  {'n':>4}  {'Spearman':>8}  {'95% interval':>16}".rstrip()
    ]
    for row in table.rows:
        rho = "–" if row["spearman"] is None else f"{row['spearman']:.3f}"
        around = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        lines.append(
            f"{row['score']:{width}}  {row['loss']:{width}}  {row['n']:>4}  {rho:>8}  {around:>16}".rstrip()
        )
    return "\n".join([*lines, *([""] if table.notes else []), *table.notes])
