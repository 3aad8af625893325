"""Metrics to Weights & Biases, when it is installed and asked for."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.files import write_atomic
from soda_jax.parallel import hosts
from soda_jax.train.hooks import RunView

FILE = "wandb_id"


class WandbHook:
    """Sends the metrics of every `every`-th step; process 0 only.

    The id of the W&B run stands in the workdir, so that a resumed run goes on in the same curves.
    """

    def __init__(self, project: str, every: int):
        """Args: project: its name there. every: steps between calls.

        Raises:
          UserError: if the package is not installed.
        """
        try:
            import wandb
        except ImportError:
            raise UserError(
                "config.log.wandb_project is set but wandb is missing: pip install 'soda-jax[wandb]'"
            ) from None
        self.every, self._project, self._wandb = every, project, wandb
        self._run: Any = None

    def __call__(self, run: RunView) -> Mapping[str, float]:
        """Logs `run.metrics`; adds none of its own."""
        if hosts.is_first():
            if self._run is None:
                self._run = self._wandb.init(
                    project=self._project,
                    id=_run_id(run.workdir),
                    config=run.config.to_dict(),
                    resume="allow",
                )
            self._run.log(dict(run.metrics), step=run.step)
        return {}


def _run_id(workdir: Path) -> str:
    """The id kept in the workdir; a new one where there is none yet."""
    path = workdir / FILE
    kept = path.read_text("utf-8").strip() if path.is_file() else ""
    if not kept:
        kept = secrets.token_hex(8)
        write_atomic(path, kept + "\n")
    return kept
