"""Metrics of a run, written to JSONL and TensorBoard, and to Weights & Biases if asked for."""

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
    """Where the metrics of a run's steps go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of `step`; called in the order of the steps."""

    def close(self, failed: bool = False) -> None:
        """Called once, after the last step; `failed` if an error has ended the run."""


def open_logs(config: RunConfig, workdir: Path, start_step: int) -> list[Log]:
    """The logs that a config asks for.

    Args:
      config: of the run.
      workdir: its folder.
      start_step: steps done so far.
    """
    logs: list[Log] = [MetricsLog(workdir, start_step, config.log.tensorboard)]
    if config.log.wandb_project and start_step < config.steps:
        logs.append(WandbLog(config.log.wandb_project, workdir, config))
    return logs


class MetricsLog:
    """Appends one line a step to `metrics.jsonl` and mirrors it to TensorBoard.

    A resumed run repeats the steps after its checkpoint: their old lines are cut off first, so that
    the file holds each step once.
    """

    def __init__(self, workdir: Path, start_step: int, tensorboard: bool):
        """Args: workdir: the run's folder. start_step: steps done so far. tensorboard: mirror or not."""
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
        """Writes the metrics of `step`; values that are not finite become null in the JSONL."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self, failed: bool = False) -> None:
        """Flushes and closes both, however the run has ended."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, in order; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def note_start(workdir: Path, step: int, about: Mapping[str, Any]) -> None:
    """Adds a line to `starts.jsonl`: the step from which a process went on, and what it ran on."""
    with (workdir / STARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **about}) + "\n")


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `starts.jsonl`, in order."""
    return [json.loads(line) for line in (workdir / STARTS).read_text("utf-8").splitlines()]
