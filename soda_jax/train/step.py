"""One training step: gradients of the token-weighted loss, spike detection, update."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soda_jax.model import ModelFunctions
from soda_jax.model.legal import LegalSets
from soda_jax.model.loss import token_losses
from soda_jax.parallel.placement import OnMesh
from soda_jax.registry import LOSS_TERMS, METRICS, split_names
from soda_jax.schema import RunConfig
from soda_jax.train.state import State

Batch = dict[str, jax.Array]
GradientFunction = Callable[[Any, Batch], tuple[Any, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class StepResult:
    """Intermediate values of a step, passed to the registered metrics.

    Attributes:
      params: parameters before the update.
      gradients: gradients of the mean loss, before clipping.
      updates: updates computed by the optimizer, even if the step skips them.
      batch: the batch, see `token_losses`.
      sums: the sums returned by `token_losses`, and `loss`, the mean loss per token.
    """

    params: Any
    gradients: Any
    updates: Any
    batch: Batch
    sums: dict[str, jax.Array]


def make_gradients(
    model: ModelFunctions,
    config: RunConfig,
    mesh: jax.sharding.Mesh,
    *,
    classes: int,
    sources: int,
    legal: LegalSets | None = None,
) -> GradientFunction:
    """Returns the function (params, batch) → (gradients of the mean loss, sums with `loss`).

    Args:
      model: the decoder, see `ModelFunctions`.
      config: settings of the run.
      mesh: the device mesh.
      classes, sources: number of target classes and number of data sources.
      legal: the legal sets over which targets are normalized; None = all ids.
    """
    placement = OnMesh(mesh)
    terms = [LOSS_TERMS.get(name, "loss_terms") for name in split_names(config.loss_terms)]

    def loss(params, batch):
        return token_losses(
            model.bind(params),
            batch,
            classes=classes,
            sources=sources,
            z_loss=config.optimizer.z_loss,
            loss_chunk=config.loss_chunk,
            placement=placement,
            terms=terms,
            legal=legal,
            full_every=config.model.full_every,
        )

    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def gradients(params, batch):
        if config.gradient_accumulation == 1:
            (total, sums), summed = value_and_grad(params, batch)
        else:
            (total, sums), summed = _accumulate(
                value_and_grad, params, batch, config.gradient_accumulation
            )
        tokens = jnp.maximum(sums["count"].sum(), 1.0)
        sums["loss"] = total / tokens
        return jax.tree.map(lambda g: g / tokens, summed), sums

    return gradients


def _accumulate(value_and_grad, params, batch, count):
    """Sums `value_and_grad` over `count` micro-batches."""

    def split(x):
        # Micro-batch i consists of rows i, i + count, …, so that no row moves between devices.
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    micro_batches = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(value_and_grad, params, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(carry, micro_batch):
        return jax.tree.map(jnp.add, carry, value_and_grad(params, micro_batch)), None

    return jax.lax.scan(add, zeros, micro_batches)[0]


def make_train_step(
    model: ModelFunctions,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    config: RunConfig,
    mesh: jax.sharding.Mesh,
    *,
    classes: int,
    sources: int,
    legal: LegalSets | None = None,
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """Returns the training step (state, batch) → (state, metrics), not jitted.

    The update is skipped if the gradient norm is not finite or, after `safety.spike_after` accepted
    steps, exceeds `safety.spike_factor` times its running mean. A skipped update changes only
    `step` and `skipped_in_a_row` in the state. The metrics are the sums of `token_losses`, `loss`,
    `gradient_norm`, `parameter_norm`, `learning_rate`, `skipped`, `skipped_in_a_row`, and the
    registered metrics listed in `log.metrics`.
    """
    gradients_of = make_gradients(
        model, config, mesh, classes=classes, sources=sources, legal=legal
    )
    safety, max_norm = config.safety, config.optimizer.max_grad_norm
    extra = {name: METRICS.get(name, "log.metrics") for name in split_names(config.log.metrics)}

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        gradients, metrics = gradients_of(state["params"], batch)
        norm = optax.global_norm(gradients)
        average = state["gradient_norm_average"]
        accept = jnp.isfinite(norm)
        if safety.spike_factor:
            watched = state["accepted"] >= safety.spike_after
            accept &= ~(watched & (norm > safety.spike_factor * average))
        clipped = gradients
        if max_norm:
            scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
            clipped = jax.tree.map(lambda g: g * scale, gradients)
        updates, new_optimizer = optimizer.update(
            clipped, state["optimizer"], state["params"], step=state["step"]
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
        result = StepResult(state["params"], gradients, updates, batch, metrics)
        return new_state, {
            **{name: metric(result) for name, metric in extra.items()},
            **metrics,
            "gradient_norm": norm,
            "parameter_norm": optax.global_norm(new_state["params"]),
            "learning_rate": jnp.asarray(schedule(state["step"]), jnp.float32),
            "skipped": (~accept).astype(jnp.int32),
            "skipped_in_a_row": skipped_in_a_row,
        }

    return step
