"""Exports for Hugging Face while a run trains, as a hook of the trainer."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from soda_jax.convert.live import LiveWeights
from soda_jax.errors import UserError
from soda_jax.parallel import hosts

FOLDER = "exports"  # in the workdir
DTYPES = ("float32", "bfloat16")
# How long the others wait for process 0, which writes and verifies.
_SECONDS = 4 * 3600.0


class ExportHook:
    """Writes `WORKDIR/exports/step-N` after every `every` steps and after the last one.

    Every process takes part in fetching the parameters; process 0 writes. The folder appears when it is
    whole and verified. One that is there already, as in a run that was resumed before it, is left as it is.
    """

    def __init__(self, every: int, dtype: str, export: Callable[..., Any] | None = None):
        """Settings of the exports.

        Args:
          every: steps between calls.
          dtype: of the exported tensors, "float32" or "bfloat16".
          export: as `soda_jax.convert.to_hf.export`, which it is by default.

        Raises:
          UserError: for another dtype.
        """
        if dtype not in DTYPES:
            raise UserError(f"export.dtype = {dtype!r} is unknown: {' or '.join(DTYPES)}")
        self.every, self._dtype = every, dtype
        self._export = export or _to_hugging_face()

    def __call__(self, run: Any) -> Mapping[str, float]:
        """Exports `run.params`; adds no metrics.

        Raises:
          UserError: if the folder cannot be written; nothing of it is left.
        """
        folder = run.workdir / FOLDER / f"step-{run.step}"
        # Process 0 looks for all: a workdir may be a folder of one machine alone.
        if hosts.broadcast_json(folder.exists(), "export there"):
            return {}
        write = hosts.is_primary()
        self._export(
            LiveWeights(run.params, run.model.config, run.mesh),
            folder,
            step=run.step,
            metadata=run.metadata(),
            workdir=run.workdir,
            dtype=self._dtype,
            write=write,
        )
        if write:
            print(f"exported step {run.step} to {folder}", file=sys.stderr, flush=True)
        # Here, and not in a collective of the next step, the others wait for the files of process 0.
        hosts.barrier("export", _SECONDS)
        return {}


def _to_hugging_face() -> Callable[..., Any]:
    from soda_jax.convert.to_hf import export

    return export
