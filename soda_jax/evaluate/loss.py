"""Computes the held-out loss vector over whole windows, for a checkpoint or in a training hook."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from soda_jax.data.storage.remote import StoreError
from soda_jax.errors import UserError
from soda_jax.evaluate.windows import Sums, Windows, open_windows
from soda_jax.generate.checkpoint import TrainedDecoder
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.model import ModelFunctions
from soda_jax.model.legal import LegalSets
from soda_jax.model.loss import token_losses
from soda_jax.parallel import hosts, rules
from soda_jax.parallel.batches import local_rows, place_batch
from soda_jax.parallel.mesh import make_mesh
from soda_jax.parallel.placement import OnMesh
from soda_jax.progress import track


def make_loss_function(
    bind: Any,
    windows: Windows,
    *,
    chunk: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    legal: LegalSets | None = None,
) -> Any:
    """Returns a jitted function from (params, batch) to the sums that give the loss vector.

    The sums are "nll" and "count", f32 `[sources, classes]`, replicated.

    Args:
      bind: function from params to a decoder, such as `ModelFunctions.bind`.
      windows: the windows from which the batches are read.
      chunk: tokens per device in each chunk of the cross-entropy; 0 = platform default.
      mesh: mesh of parameters and batches; by default, only the first device.
      legal: the legal sets over which targets are normalized; None = all ids. The windows must have been
        opened with `legal_sets`.
    """
    mesh = mesh or make_mesh({}, jax.devices()[:1])
    placement = OnMesh(mesh)

    def loss(params, batch):
        _, sums = token_losses(
            bind(params),
            batch,
            classes=len(windows.layout.class_names),
            sources=len(windows.source_names),
            loss_chunk=chunk,
            placement=placement,
            legal=legal,
        )
        return {name: sums[name] for name in ("nll", "count")}

    return jax.jit(loss, out_shardings=rules.replicated(mesh))


def sum_losses(
    function: Any,
    params: Any,
    batches: Iterable[dict[str, np.ndarray]],
    to_devices: Callable[[dict[str, np.ndarray]], Any] = lambda batch: batch,
) -> Sums:
    """Returns the sums over all batches, f64 `[sources, classes]`.

    Args:
      function: result of `make_loss_function`.
      params: parameters of the model.
      batches: batches of windows on the host.
      to_devices: transfers a batch to the devices.
    """
    totals: Sums = {}
    for batch in batches:
        sums = jax.device_get(function(params, to_devices(batch)))
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
    return totals


def in_float32(decoder: TrainedDecoder) -> TrainedDecoder:
    """Returns the decoder with f32 activations: in bf16, a loss depends on the batch and on the devices."""
    config = dataclasses.replace(decoder.model.config, compute_dtype="float32")
    return dataclasses.replace(decoder, model=ModelFunctions(config))


def held_out_sums(
    decoder: TrainedDecoder | SpeechModel, windows: Windows, batch_size: int = 8, limit: int = 0
) -> Sums:
    """Returns the loss sums of a checkpoint over `windows`; see `Windows.batches` for `limit`.

    Targets are normalized over their legal sets if the windows were opened with `legal_sets`, else over
    all ids.
    """
    mesh = getattr(decoder.placement, "mesh", None)
    function = make_loss_function(decoder.model.bind, windows, legal=windows.legal, mesh=mesh)
    count = windows.batch_count(batch_size, limit)
    batches = track(windows.batches(batch_size, limit=limit), "held-out loss", count)
    return sum_losses(function, decoder.params, batches)


class LossHook:
    """Logs `validation/loss/…`, the loss vector on the validation splits of the training mixture.

    The windows are whole and have the views and the normalizer (`model.head`) used in training. A source without a validation split
    is reported once, on stderr.

    Attributes:
      every: steps between two measurements.
    """

    def __init__(self, every: int, batches: int):
        """Sets the interval in steps and the number of batches to read, 0 for all."""
        self.every, self._limit = every, batches
        self._opened = False
        self._windows: Windows | None = None
        self._batches: list[dict[str, Any]] = []

    def __call__(self, run: Any) -> Mapping[str, float]:
        """Returns the held-out loss vector of `run.params`; empty without validation splits."""
        size, mesh = run.config.batch_size, run.mesh
        rows = local_rows(mesh, size)
        if not self._opened:
            self._open(run, rows)
        if self._windows is None:
            return {}
        sums = sum_losses(
            self._function,
            run.params,
            self._batches,
            lambda batch: place_batch(batch, rows, mesh, size),
        )
        values = self._windows.loss_vector(sums)
        return {f"validation/{name}": value for name, value in values.items()}

    def _open(self, run: Any, rows: list[int]) -> None:
        try:
            windows = open_windows(
                run.dataset.config, "validation", legal_sets=run.dataset.legal_sets
            )
        except StoreError:  # temporary: the split may exist, so it must not be skipped
            raise
        except UserError as error:
            _report(f"no held-out loss: {error}")
            self._opened = True
            return
        for name in windows.left_out:
            _report(f"source {name} has no validation split: its held-out loss is not measured")
        # The batches are read once and kept in host memory; every call scores the same windows.
        batches = list(windows.batches(run.config.batch_size, rows, self._limit))
        self._function = make_loss_function(
            run.model.bind,
            windows,
            chunk=run.config.loss_chunk,
            mesh=run.mesh,
            legal=windows.legal,
        )
        # Only now: after a temporary error, the next call must not find half of this.
        self._windows, self._batches, self._opened = windows, batches, True


def _report(message: str) -> None:
    if hosts.is_primary():
        print(message, file=sys.stderr, flush=True)
