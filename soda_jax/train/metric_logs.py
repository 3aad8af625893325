"""Logs of the metrics of a run: JSONL, TensorBoard, and Weights & Biases if configured."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from soda_jax.files import write_atomic
from soda_jax.schema import RunConfig
from soda_jax.train.wandb import WandbLog

FILE = "metrics.jsonl"
STARTS = "starts.jsonl"


class Log(Protocol):
    """A destination for the metrics of a run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of `step`; steps must be written in ascending order."""

    def close(self, failed: bool = False) -> None:
        """Closes the log; `failed` is True if an error ended the run."""


def open_logs(config: RunConfig, workdir: Path, start_step: int) -> list[Log]:
    """Opens the logs that a config selects.

    Args:
      config: settings of the run.
      workdir: workdir of the run.
      start_step: number of optimizer steps that earlier starts of the run completed.
    """
    logs: list[Log] = [MetricsLog(workdir, start_step, config.log.tensorboard)]
    if config.log.wandb_project and start_step < config.steps:
        logs.append(WandbLog(config.log.wandb_project, workdir, config))
    return logs


class MetricsLog:
    """Appends one line per step to `metrics.jsonl` and mirrors it to TensorBoard.

    A resumed run repeats the steps after its checkpoint. The old lines of these steps are removed
    first, so that the file contains each step once.
    """

    def __init__(self, workdir: Path, start_step: int, tensorboard: bool):
        """Opens the files.

        Args:
          workdir: workdir of the run.
          start_step: number of optimizer steps that earlier starts of the run completed.
          tensorboard: whether to mirror to TensorBoard.
        """
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / FILE
        kept = [row for row in read_metrics(path) if row["step"] <= start_step]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of `step`; non-finite values become null in the JSONL."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self, failed: bool = False) -> None:
        """Flushes and closes both files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl`; skips lines that a killed run left incomplete."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def log_start(workdir: Path, step: int, about: Mapping[str, Any]) -> None:
    """Appends a line to `starts.jsonl`: the number of steps already done, and `about`."""
    with (workdir / STARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **about}) + "\n")


def last_start(workdir: Path) -> dict[str, Any]:
    """Returns the last line of `starts.jsonl`; empty if there is none."""
    starts = read_starts(workdir) if (workdir / STARTS).exists() else []
    return starts[-1] if starts else {}


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of `starts.jsonl`, in order."""
    return [json.loads(line) for line in (workdir / STARTS).read_text("utf-8").splitlines()]
