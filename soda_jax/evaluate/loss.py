"""Held-out loss: the loss vector over whole windows."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.evaluate.windows import Windows
from soda_jax.generate.checkpoint import TrainedDecoder
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.model.loss import class_sums, linear_cross_entropy, loss_settings
from soda_jax.parallel import rules
from soda_jax.parallel.mesh import make_mesh
from soda_jax.parallel.placement import OnMesh
from soda_jax.progress import track

Sums = dict[str, np.ndarray]


def make_loss_function(
    bind: Any,
    classes: int,
    sources: int,
    *,
    chunk: int = 0,
    mesh: jax.sharding.Mesh | None = None,
) -> Any:
    """The jitted function (params, batch) → {"nll", "count"}, f32 `[sources, classes]`.

    Args:
      bind: params → decoder, `ModelFunctions.bind`.
      classes, sources: sizes of the sums.
      chunk: tokens whose logits exist at a time, on each device; 0: by platform.
      mesh: of parameters and batches; the first device by default. The sums are on all of its devices.
    """
    mesh = mesh or make_mesh({}, jax.devices()[:1])
    placement = OnMesh(mesh)

    def loss(params, batch):
        decoder = bind(params)
        vocabulary = decoder.config.vocabulary
        places = (batch["tokens"], batch["segment_ids"], batch["positions"])
        hidden = decoder(*places, placement=placement)
        rows = jnp.asarray(vocabulary.row_of_id)[jnp.roll(batch["tokens"], -1, axis=1)]
        weights = batch["loss_mask"].astype(jnp.float32)
        blocks = decoder.head_blocks()
        settings = loss_settings(vocabulary.valid_rows, blocks, 0.0, chunk, placement)
        _, nll, _ = linear_cross_entropy(settings, hidden, blocks, rows, weights)
        return class_sums(nll, weights, batch["target_class"], batch["source"], classes, sources)

    return jax.jit(loss, out_shardings=rules.replicated(mesh))


def sum_losses(
    function: Any,
    params: Any,
    batches: Iterable[dict[str, np.ndarray]],
    place: Callable[[dict[str, np.ndarray]], Any] = lambda batch: batch,
) -> Sums:
    """Sums of all batches, f64 `[sources, classes]`; `place` puts a batch on the devices."""
    totals: Sums = {}
    for batch in batches:
        sums = jax.device_get(function(params, place(batch)))
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
    return totals


def held_out_sums(
    decoder: TrainedDecoder | SpeechModel, windows: Windows, batch_size: int = 8
) -> Sums:
    """The sums of a checkpoint over all `windows`, as `loss_vector` wants them."""
    function = make_loss_function(
        decoder.model.bind, len(windows.layout.class_names), len(windows.source_names)
    )
    batches = track(windows.batches(batch_size), "held-out loss", windows.batch_count(batch_size))
    return sum_losses(function, decoder.params, batches)
