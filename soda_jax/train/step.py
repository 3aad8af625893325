"""One training step: gradients of the token-weighted loss, safety, update."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soda_jax.model import Decoder, ModelFunctions
from soda_jax.model.loss import class_sums, linear_cross_entropy, loss_settings
from soda_jax.parallel.placement import OnMesh
from soda_jax.train.state import State

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What the step needs of the config, as plain values.

    Attributes:
      classes: number of target classes.
      sources: number of data sources.
      accumulate: micro-batches a step.
      z_loss: weight of log²Z.
      loss_chunk: tokens whose logits exist at a time, on each device; 0: by platform.
      clip: largest global gradient norm.
      spike_factor, spike_after: see `config.safety`.
    """

    classes: int
    sources: int
    accumulate: int = 1
    z_loss: float = 1e-4
    loss_chunk: int = 0
    clip: float = 1.0
    spike_factor: float = 0.0
    spike_after: int = 0


def batch_loss(
    decoder: Decoder,
    batch: Batch,
    settings: StepSettings,
    mesh: jax.sharding.Mesh,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Summed loss of a batch, and what the loss vector is made of.

    Args:
      decoder: the bound model.
      batch: `tokens`, `segment_ids`, `positions`, `target_class` int `[batch, sequence]`,
        `loss_mask` bool `[batch, sequence]`, `source` int `[batch]`.
      settings: see `StepSettings`.
      mesh: the devices.

    Returns:
      f32 scalar Σ (nll + z-loss) over the targets, and sums: `nll` and `count`, f32
      `[sources, classes]`, and `log_z_squared`, f32 scalar.
    """
    vocabulary = decoder.config.vocabulary
    placement = OnMesh(mesh)
    hidden = decoder(
        batch["tokens"],
        batch["segment_ids"],
        batch["positions"],
        placement=placement,
    )
    # The last place of a window has no target; its mask is 0 whatever rolls in.
    targets = jnp.asarray(vocabulary.row_of_id)[jnp.roll(batch["tokens"], -1, axis=1)]
    weights = batch["loss_mask"].astype(jnp.float32)
    blocks = decoder.head_blocks()
    loss = loss_settings(
        vocabulary.valid_rows,
        blocks,
        settings.z_loss,
        settings.loss_chunk,
        placement,
    )
    total, nll, log_z = linear_cross_entropy(loss, hidden, blocks, targets, weights)
    sums = class_sums(
        nll, weights, batch["target_class"], batch["source"], settings.classes, settings.sources
    )
    sums["log_z_squared"] = jnp.sum(weights * jnp.square(log_z))
    return total, sums


def make_gradients(
    model: ModelFunctions, settings: StepSettings, mesh: jax.sharding.Mesh
) -> Callable[[Any, Batch], tuple[Any, dict[str, jax.Array]]]:
    """The function (params, batch) → (gradients of the mean loss, sums)."""

    def loss(params, batch):
        return batch_loss(model.bind(params), batch, settings, mesh)

    def gradients(params, batch):
        if settings.accumulate == 1:
            (total, sums), summed = jax.value_and_grad(loss, has_aux=True)(params, batch)
        else:
            total, sums, summed = _accumulated(loss, params, batch, settings.accumulate)
        tokens = jnp.maximum(sums["count"].sum(), 1.0)
        sums["loss"] = total / tokens
        return jax.tree.map(lambda g: g / tokens, summed), sums

    return gradients


def _accumulated(loss, params, batch, count):
    def cut(x):
        # Micro-batch i takes rows i, i + count, …: each device keeps the rows that it holds.
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    def one(micro):
        (total, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params, micro)
        return total, sums, gradients

    micro_batches = jax.tree.map(cut, batch)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], micro_batches))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    result, _ = jax.lax.scan(
        lambda carry, micro: (jax.tree.map(jnp.add, carry, one(micro)), None), zeros, micro_batches
    )
    return result


def make_train_step(
    model: ModelFunctions,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    settings: StepSettings,
    mesh: jax.sharding.Mesh,
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """The step, not yet jitted: (state, batch) → (state, metrics).

    An update is skipped, and only `step` moves on, where the gradient norm is not finite or exceeds
    `spike_factor` times its running mean. Metrics: the sums of `batch_loss`, `loss`,
    `gradient_norm`, `parameter_norm`, `learning_rate`, `skipped`, `skipped_in_a_row`.
    """
    gradients_of = make_gradients(model, settings, mesh)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        gradients, metrics = gradients_of(state["params"], batch)
        norm = optax.global_norm(gradients)
        average = state["gradient_norm_average"]
        accept = jnp.isfinite(norm)
        if settings.spike_factor:
            watched = state["accepted"] >= settings.spike_after
            accept &= ~(watched & (norm > settings.spike_factor * average))
        if settings.clip:
            scale = jnp.minimum(1.0, settings.clip / jnp.maximum(norm, 1e-12))
            gradients = jax.tree.map(lambda g: g * scale, gradients)
        updates, new_optimizer = optimizer.update(
            gradients, state["optimizer"], state["params"], step=state["step"]
        )
        new_params = optax.apply_updates(state["params"], updates)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(accept, n, o), new, old)

        new_average = jnp.where(state["accepted"] == 0, norm, 0.98 * average + 0.02 * norm)
        skipped_in_a_row = jnp.where(accept, 0, state["skipped_in_a_row"] + 1)
        new_state = {
            "params": keep(new_params, state["params"]),
            "optimizer": keep(new_optimizer, state["optimizer"]),
            "step": state["step"] + 1,
            "accepted": state["accepted"] + accept,
            "skipped_in_a_row": skipped_in_a_row,
            "gradient_norm_average": jnp.where(accept, new_average, average),
        }
        metrics |= {
            "gradient_norm": norm,
            "parameter_norm": optax.global_norm(new_state["params"]),
            "learning_rate": jnp.asarray(schedule(state["step"]), jnp.float32),
            "skipped": (~accept).astype(jnp.int32),
            "skipped_in_a_row": skipped_in_a_row,
        }
        return new_state, metrics

    return step
