"""The table of a study: one row per run, with the loss vector, as CSV and Parquet."""

import importlib.util
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soda_jax.checkpoints import folder
from soda_jax.errors import UserError
from soda_jax.files import write_atomic
from soda_jax.scaling.grid import to_csv
from soda_jax.scaling.study import DONE, FAILED, OPEN, Study
from soda_jax.schema import RunConfig
from soda_jax.train.metric_logs import FILE

_VALIDATION = "validation/loss/"


def result_row(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns `loss` and `loss/CLASS`, the held-out losses in nats, from the metrics of a step.

    Args:
      metrics: metrics with `validation/loss/…`, see `soda_jax.evaluate.loss.LossHook`. The losses of a
        source, `validation/loss/SOURCE/CLASS`, are left out.
    """
    row: dict[str, float] = {}
    for name, value in metrics.items():
        part = name.removeprefix(_VALIDATION)
        if name.startswith(_VALIDATION) and "/" not in part:
            row["loss" if part == "all" else f"loss/{part}"] = value
    return row


def last_row(
    rows: Sequence[Mapping[str, Any]], config: RunConfig, workdir: Path
) -> dict[str, float]:
    """Returns the metrics of the last step of a run; values that are not finite are NaN.

    Args:
      rows: rows of `metrics.jsonl`, which has null for a value that is not finite.
      config: settings of the run.
      workdir: workdir of the run, for the message.

    Raises:
      UserError: if the last step is missing, because the file was removed or damaged after the run.
    """
    if not rows or rows[-1]["step"] != config.steps:
        raise UserError(
            f"{workdir / FILE} does not have step {config.steps}, the last one, although the run has its "
            f"checkpoint; remove {folder.of_run(workdir, config.checkpoint.directory)} to repeat the run"
        )
    return {name: math.nan if value is None else value for name, value in rows[-1].items()}


def seconds_of(rows: Sequence[Mapping[str, Any]], steps: int) -> float:
    """Returns the seconds of all steps of a run.

    The seconds of steps that are not logged (`log.every_steps`) are those of a median step, so that one
    that contains compilation does not count for several.
    """
    seconds = [float(row["seconds"]) for row in rows]
    return sum(seconds) + (steps - len(seconds)) * statistics.median(seconds)


def rows_of(study: Study, limit: int) -> list[dict[str, Any]]:
    """Returns a row for every run of the plan, finished or not.

    Args:
      study: the study.
      limit: failed attempts after which a run has failed.
    """
    rows = []
    for run in study.runs:
        # Each file is read once: another process may finish the run between two reads.
        attempts, result = run.attempts(), run.result()
        status = DONE if result else FAILED if attempts.failures >= limit else OPEN
        state = {
            "experiment": study.experiment,
            "status": status,
            "seed": run.job.config.seed + attempts.diverged,
            "attempts": attempts.failures + (status == DONE),
            "started": attempts.started,
            "ended": attempts.ended if result is None else result["ended"],
            "error": "" if result else attempts.error,
        }
        rows.append({**run.job.columns, **state, **(result or {})})
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def write_results(study: Study, limit: int) -> list[dict[str, Any]]:
    """Writes `results.csv` and, if pyarrow is installed, `results.parquet`; returns the rows.

    Nothing is written if another process has added runs to the study, because their rows would be lost.
    """
    with study.table_lock():
        rows = rows_of(study, limit)
        if study.is_whole():
            _write(study, rows)
        return rows


def _write(study: Study, rows: list[dict[str, Any]]) -> None:
    empty = [{name: "" if value is None else value for name, value in row.items()} for row in rows]
    write_atomic(study.folder / "results.csv", to_csv(empty))
    if importlib.util.find_spec("pyarrow") is not None:
        _write_parquet(study.folder / "results.parquet", rows)


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    write_atomic(path, buffer.getvalue().to_pybytes())


def check_loss(row: Mapping[str, float], vocabulary: int) -> str:
    """Returns why a loss shows that training diverged, "" if it does not.

    Raises:
      UserError: if the loss was not measured.
    """
    if "loss" not in row:
        raise UserError(
            "no held-out loss was measured: the data has no validation split; tokenize it with "
            "--validation_fraction"
        )
    loss, uniform = row["loss"], math.log(vocabulary)
    if not math.isfinite(loss):
        return f"the held-out loss is {loss}"
    if loss > uniform:
        return f"the held-out loss {loss:.4g} is above that of a uniform guess, {uniform:.4g}"
    return ""
