"""The held-out loss as a hook of the trainer."""

import sys
from collections.abc import Mapping
from typing import Any

from soda_jax.data.loss_vector import loss_vector
from soda_jax.data.storage.remote import StoreError
from soda_jax.errors import UserError
from soda_jax.evaluate.loss import make_loss_function, sum_losses
from soda_jax.evaluate.windows import Windows, open_windows
from soda_jax.parallel import hosts
from soda_jax.parallel.batches import local_rows, place_batch


class LossHook:
    """Logs `validation/loss/…`, the loss vector on the validation splits of the training mixture.

    It covers whole windows in the views of training. Sources without a validation split are reported once.

    Attributes:
      every: steps between calls.
    """

    def __init__(self, every: int, batches: int):
        """Sets the interval in steps and the number of batches to read, 0 for all."""
        self.every, self._limit = every, batches
        self._windows: Windows | None = None
        self._function: Any = None
        self._batches: list[dict[str, Any]] = []

    def __call__(self, run: Any) -> Mapping[str, float]:
        """Returns the held-out loss vector of `run.params`."""
        size, mesh = run.config.batch_size, run.mesh
        rows = local_rows(mesh, size)
        if self._function is None:
            self._open(run, rows)
        if self._windows is None:
            return {}
        sums = sum_losses(
            self._function,
            run.params,
            self._batches,
            lambda batch: place_batch(batch, rows, mesh, size),
        )
        names = self._windows.layout.class_names
        values = loss_vector(sums["nll"], sums["count"], names, self._windows.source_names)
        return {f"validation/{name}": value for name, value in values.items()}

    def _open(self, run: Any, rows: list[int]) -> None:
        names = run.dataset.layout.class_names
        self._function = make_loss_function(
            run.model.bind,
            len(names),
            len(run.dataset.source_names),
            chunk=run.config.loss_chunk,
            mesh=run.mesh,
        )
        try:
            self._windows = open_windows(run.dataset.config, "validation")
        except StoreError:  # the split may exist, so the run must not continue without it
            raise
        except UserError as error:
            _report(f"no held-out loss: {error}")
            return
        for name in self._windows.left_out:
            _report(f"source {name} has no validation split: its held-out loss is not measured")
        # Read once; every call scores the same windows.
        self._batches = list(self._windows.batches(run.config.batch_size, rows, self._limit))


def _report(message: str) -> None:
    if hosts.is_primary():
        print(message, file=sys.stderr, flush=True)
