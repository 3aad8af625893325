"""Logs metrics to Weights & Biases if a project is configured."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.files import write_atomic
from soda_jax.schema import RunConfig, to_dict

FILE = "wandb_id"


def package() -> Any:
    """Returns the module `wandb`; raises UserError if it is not installed."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            "config.log.wandb_project is set but wandb is missing: pip install 'soda-jax[wandb]'"
        ) from None
    return wandb


class WandbLog:
    """A Weights & Biases run that receives the lines of `metrics.jsonl`.

    The id of the W&B run is stored in the workdir, so that a resumed run continues the same curves.
    """

    def __init__(self, project: str, workdir: Path, config: RunConfig):
        """Starts or resumes the W&B run.

        Args:
          project: name of the W&B project.
          workdir: workdir of the training run.
          config: settings of the run.

        Raises:
          UserError: if the package is not installed.
        """
        self._run = package().init(
            project=project, id=_run_id(workdir), config=to_dict(config), resume="allow"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the metrics of `step`."""
        self._run.log(dict(values), step=step)

    def close(self, failed: bool = False) -> None:
        """Finishes the W&B run; after a failure, wandb does this when the process exits."""
        if not failed:  # waiting for the network must not delay the exit of the other processes
            self._run.finish()


def _run_id(workdir: Path) -> str:
    """Returns the id stored in the workdir; stores a new one if there is none."""
    path = workdir / FILE
    kept = path.read_text("utf-8").strip() if path.is_file() else ""
    if not kept:
        kept = secrets.token_hex(8)
        write_atomic(path, kept + "\n")
    return kept
