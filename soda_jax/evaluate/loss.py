"""Held-out loss: the loss vector over whole windows, and the baselines that a model must beat."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.data.dataset import Dataset
from soda_jax.model.loss import class_sums, linear_cross_entropy, loss_settings

Sums = dict[str, np.ndarray]


def make_loss_function(bind: Any, classes: int, sources: int, chunk: int = 2048) -> Any:
    """The jitted function (params, batch) → {"nll", "count"}, f32 `[sources, classes]`.

    Args:
      bind: params → decoder, `ModelFunctions.bind`.
      classes, sources: sizes of the sums.
      chunk: tokens whose logits exist at a time.
    """

    def loss(params, batch):
        decoder = bind(params)
        vocabulary = decoder.config.vocabulary
        hidden = decoder(batch["tokens"], batch["segment_ids"], batch["positions"])
        rows = jnp.asarray(vocabulary.row_of_id)[jnp.roll(batch["tokens"], -1, axis=1)]
        weights = batch["loss_mask"].astype(jnp.float32)
        blocks = decoder.head_blocks()
        settings = loss_settings(
            vocabulary.valid_rows, tuple(b.shape[0] for b in blocks), 0.0, chunk
        )
        _, nll, _ = linear_cross_entropy(settings, hidden, blocks, rows, weights)
        return class_sums(nll, weights, batch["target_class"], batch["source"], classes, sources)

    return jax.jit(loss)


def windows_of(dataset: Dataset, batch_size: int, batches: int) -> list[dict[str, np.ndarray]]:
    """At most `batches` batches of a one-pass data set, spread evenly over it (0: all of it)."""
    total = -(-(dataset.windows or 0) // batch_size)
    count = min(batches, total) if batches else total
    starts = [index * total // count * batch_size for index in range(count)]
    return [dataset.batch(start, range(batch_size))._asdict() for start in starts]


def sum_losses(
    function: Any, params: Any, batches: list[dict[str, np.ndarray]], place: Any
) -> Sums:
    """Sums of all batches, f64 `[sources, classes]`; `place` puts a batch on the devices."""
    totals: Sums = {}
    for batch in batches:
        sums = jax.device_get(function(params, place(batch)))
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
    return totals
