"""Metrics to Weights & Biases, when it is installed and asked for."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.files import write_atomic

FILE = "wandb_id"


def package() -> Any:
    """The module `wandb`; UserError if it is not installed."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            "config.log.wandb_project is set but wandb is missing: pip install 'soda-jax[wandb]'"
        ) from None
    return wandb


class WandbLog:
    """A run there, which gets the lines of `metrics.jsonl`.

    Its id stands in the workdir, so that a resumed run goes on in the same curves.
    """

    def __init__(self, project: str, workdir: Path, config: Any):
        """Args: project: its name there. workdir: the run's folder. config: the run's ConfigDict.

        Raises:
          UserError: if the package is not installed.
        """
        self._run = package().init(
            project=project, id=_run_id(workdir), config=config.to_dict(), resume="allow"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the metrics of `step`."""
        self._run.log(dict(values), step=step)

    def close(self, failed: bool = False) -> None:
        """Waits until all is sent; of a failure the package hears by itself, when the process ends."""
        if not failed:  # what waits on a network must not hold up the end of the other processes
            self._run.finish()


def _run_id(workdir: Path) -> str:
    """The id kept in the workdir; a new one where there is none yet."""
    path = workdir / FILE
    kept = path.read_text("utf-8").strip() if path.is_file() else ""
    if not kept:
        kept = secrets.token_hex(8)
        write_atomic(path, kept + "\n")
    return kept
