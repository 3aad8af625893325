"""The held-out loss as a hook of the trainer."""

from collections.abc import Mapping
from typing import Any

from soda_jax.data.dataset import make_dataset
from soda_jax.data.loss_vector import loss_vector
from soda_jax.errors import UserError
from soda_jax.evaluate.loss import make_loss_function, sum_losses, windows_of
from soda_jax.parallel.batches import local_rows, place_batch


class LossHook:
    """Logs `validation/loss/…`: the loss vector on the validation split of the run's own mixture.

    Evaluates whole windows in the views of training. A data set without validation windows is named
    once and left out.
    """

    def __init__(self, every: int, batches: int):
        """Args: every: steps between calls. batches: how many batches are read, 0 for all."""
        self.every, self._batches = every, batches
        self._ready: Any = None

    def __call__(self, run: Any) -> Mapping[str, float]:
        """The held-out loss vector of `run.params`."""
        size, mesh = run.config.batch_size, run.mesh
        if self._ready is None:
            try:
                dataset = make_dataset(run.dataset.config, "validation", one_pass=True)
            except UserError as error:
                print(f"no held-out loss: {error}")
                self._ready = ()
                return {}
            layout = dataset.layout
            function = make_loss_function(
                run.model.bind, len(layout.class_names), len(dataset.source_names)
            )
            rows = local_rows(mesh, size)
            batches = [
                {name: array[rows] for name, array in batch.items()}
                for batch in windows_of(dataset, size, self._batches)
            ]
            self._ready = dataset, function, rows, batches
        if not self._ready:
            return {}
        dataset, function, rows, batches = self._ready
        sums = sum_losses(
            function,
            run.params,
            batches,
            lambda batch: place_batch(batch, rows, mesh, size),
        )
        names = dataset.layout.class_names
        values = loss_vector(sums["nll"], sums["count"], names, dataset.source_names)
        return {f"validation/{name}": value for name, value in values.items()}
