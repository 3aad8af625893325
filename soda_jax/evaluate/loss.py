"""The held-out loss vector of a model over whole windows."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from soda_jax.evaluate.windows import Windows
from soda_jax.generate.checkpoint import TrainedDecoder
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.model.loss import token_losses
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
    """Returns the jitted function (params, batch) → {"nll", "count"}, f32 `[sources, classes]`, replicated.

    Args:
      bind: function from params to a decoder, `ModelFunctions.bind`.
      classes, sources: number of target classes and of data sources.
      chunk: tokens whose logits exist at a time, on each device; 0 = by platform.
      mesh: devices of parameters and batches; the first device by default.
    """
    mesh = mesh or make_mesh({}, jax.devices()[:1])
    placement = OnMesh(mesh)

    def loss(params, batch):
        _, sums = token_losses(
            bind(params),
            batch,
            classes=classes,
            sources=sources,
            loss_chunk=chunk,
            placement=placement,
        )
        return {name: sums[name] for name in ("nll", "count")}

    return jax.jit(loss, out_shardings=rules.replicated(mesh))


def sum_losses(
    function: Any,
    params: Any,
    batches: Iterable[dict[str, np.ndarray]],
    to_devices: Callable[[dict[str, np.ndarray]], Any] = lambda batch: batch,
) -> Sums:
    """Returns the sums of all batches, f64 `[sources, classes]`; `to_devices` transfers a batch."""
    totals: Sums = {}
    for batch in batches:
        sums = jax.device_get(function(params, to_devices(batch)))
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
    return totals


def held_out_sums(
    decoder: TrainedDecoder | SpeechModel, windows: Windows, batch_size: int = 8
) -> Sums:
    """Returns the sums of a checkpoint over all `windows`, for `loss_vector`."""
    function = make_loss_function(
        decoder.model.bind, len(windows.layout.class_names), len(windows.source_names)
    )
    batches = track(windows.batches(batch_size), "held-out loss", windows.batch_count(batch_size))
    return sum_losses(function, decoder.params, batches)
