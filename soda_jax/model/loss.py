"""Computes the cross-entropy over a large vocabulary without materializing all logits.

Tokens are processed in chunks of equal length, the last one padded, so only the logits of one chunk
exist at a time. The gradients are computed in the forward pass, which is possible because they are
linear in the cotangent of the summed loss. Each chunk therefore needs three matrix products
(logits, gradient of the hidden states, gradient of the head), as many as without chunks, and
nothing is recomputed. This file contains the computation on one device; `loss_sharding` combines
the results of all devices.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.model.config import VocabularyBlocks
from soda_jax.model.decoder import Decoder
from soda_jax.model.loss_sharding import Reduction, run_sharded
from soda_jax.model.placement import ONE_DEVICE, Placement

Blocks = tuple[jax.Array, ...]
Batch = Mapping[str, jax.Array]
# (decoder, hidden `[batch, sequence, d]`, batch) -> f32 scalar, summed over the targets of the batch.
LossTerm = Callable[[Decoder, jax.Array, Batch], jax.Array]
_MASKED = -1e30

# Tokens per chunk by platform, see docs/performance.md. On a CPU, 512 needs less CPU time and
# memory than 2,048. On a TPU, each chunk reads and writes the gradient of the head, and with
# smaller chunks this traffic would limit narrow models. The value for GPUs is not tuned yet.
CHUNKS: Mapping[str, int] = {"cpu": 512, "tpu": 2048, "gpu": 2048}


class LossSettings(NamedTuple):
    """Static settings of the loss.

    Attributes:
      vocabulary: blocks of rows of the head.
      z_weight: weight of the z-loss, log²Z.
      chunk: tokens per chunk on each device; 0 = the default of the platform of `placement`.
      placement: sharding of the arrays.
    """

    vocabulary: VocabularyBlocks
    z_weight: float = 0.0
    chunk: int = 0
    placement: Placement = ONE_DEVICE


def chunk_tokens(chunk: int, platform: str) -> int:
    """Returns the number of tokens per chunk; 0 selects the default of the platform."""
    return chunk or CHUNKS.get(platform, CHUNKS["gpu"])


def token_losses(
    decoder: Decoder,
    batch: Batch,
    *,
    classes: int,
    sources: int,
    z_loss: float = 0.0,
    loss_chunk: int = 0,
    placement: Placement = ONE_DEVICE,
    terms: Sequence[LossTerm] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the summed loss of a batch, and the sums from which its loss vector is computed.

    Args:
      decoder: the bound model.
      batch: `tokens`, `segment_ids`, `positions`, `target_class` int `[batch, sequence]`,
        `loss_mask` f32 `[batch, sequence]`, `source` int `[batch]`.
      classes, sources: number of target classes and of data sources.
      z_loss: weight of log²Z.
      loss_chunk: tokens per chunk on each device; 0 = the default of the platform.
      placement: sharding of the arrays.
      terms: further loss terms, see `LossTerm`.

    Returns:
      f32 scalar Σ loss_mask · (nll + z_loss · log²Z) + Σ terms, and a dict of sums: `nll` and
      `count`, f32 `[sources, classes]`, and `log_z_squared`, f32 scalar.
    """
    vocabulary = decoder.config.vocabulary
    hidden = decoder(batch["tokens"], batch["segment_ids"], batch["positions"], placement=placement)
    # The last position of a window has no target. Its mask is 0, so the token that `roll` puts
    # there does not affect the loss.
    targets = jnp.asarray(vocabulary.row_of_id)[jnp.roll(batch["tokens"], -1, axis=1)]
    weights = batch["loss_mask"].astype(jnp.float32)
    blocks = decoder.head_blocks()
    settings = LossSettings(vocabulary, z_loss, loss_chunk, placement)
    total, nll, log_z = linear_cross_entropy(settings, hidden, blocks, targets, weights)
    sums = class_sums(nll, weights, batch["target_class"], batch["source"], classes, sources)
    sums["log_z_squared"] = jnp.sum(weights * jnp.square(log_z))
    for term in terms:
        total = total + term(decoder, hidden, batch)
    return total, sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_cross_entropy(
    settings: LossSettings,
    hidden: jax.Array,
    blocks: Blocks,
    target_rows: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the cross-entropy between the logits `hidden` · head and the targets.

    Args:
      settings: static settings.
      hidden: `[batch, sequence, d]`.
      blocks: blocks of the head `[groups, rows, d]`.
      target_rows: row number of each target, see `VocabularyBlocks`, int32 `[batch, sequence]`.
      weights: f32 `[batch, sequence]`, 0 where there is no loss.

    Returns:
      total: f32 scalar, Σ weight · (nll + z_weight · log²Z). Only this output has a
        gradient, with respect to `hidden` and `blocks`.
      nll: f32 `[batch, sequence]`, −log p of each target in nats, not weighted.
      log_z: f32 `[batch, sequence]`.
    """
    total, nll, log_z, _, _ = _forward(settings, hidden, blocks, target_rows, weights, False)
    return total, nll, log_z


def _linear_cross_entropy_fwd(settings, hidden, blocks, target_rows, weights):
    total, nll, log_z, d_hidden, d_blocks = _forward(
        settings, hidden, blocks, target_rows, weights, True
    )
    return (total, nll, log_z), (d_hidden, d_blocks, target_rows.shape)


def _linear_cross_entropy_bwd(settings, saved, cotangents):
    d_hidden, d_blocks, shape = saved
    scale = cotangents[0]
    no_gradient = np.zeros(shape, jax.dtypes.float0)
    return (
        (d_hidden * scale).astype(d_hidden.dtype),
        tuple(block * scale for block in d_blocks),
        no_gradient,
        jnp.zeros(shape, jnp.float32),
    )


linear_cross_entropy.defvjp(_linear_cross_entropy_fwd, _linear_cross_entropy_bwd)


def _forward(settings, hidden, blocks, target_rows, weights, with_gradients):
    """Returns (total, nll, log_z, d_hidden, d_blocks)."""
    head = tuple(block.astype(hidden.dtype) for block in blocks)
    local_loss = functools.partial(_local_loss, settings, with_gradients)
    nll, log_z, d_hidden, d_blocks = run_sharded(
        local_loss, settings.placement, hidden, head, target_rows, weights, with_gradients
    )
    total = jnp.sum(weights * (nll + settings.z_weight * jnp.square(log_z)))
    return total, nll, log_z, d_hidden, d_blocks


def _local_loss(
    settings: LossSettings,
    with_gradients: bool,
    reduction: Reduction,
    hidden: jax.Array,
    head: Blocks,
    target_rows: jax.Array,
    weights: jax.Array,
) -> Any:
    """Returns (nll, log_z, d_hidden, d_blocks).

    The first three are for the local tokens; d_blocks is summed over the tokens of all devices.
    """
    shape, tokens = target_rows.shape, target_rows.size
    chunk = chunk_tokens(settings.chunk, settings.placement.platform)
    # The smallest number of chunks of at most `chunk` tokens, and the smallest equal chunk length.
    count = -(-tokens // max(1, chunk))
    length = -(-tokens // count)
    flat_head = tuple(block.reshape(-1, block.shape[-1]) for block in head)
    targets, masks = _local_rows(settings.vocabulary, reduction, head, target_rows)

    def split_chunks(x):
        x = x.reshape(tokens, *x.shape[2:])
        if padding := count * length - tokens:  # padding has weight 0: no loss, no gradient
            x = jnp.pad(x, ((0, padding), *((0, 0) for _ in x.shape[1:])))
        return x.reshape(count, length, *x.shape[1:])

    def join_chunks(x):
        return x.reshape(count * length, *x.shape[2:])[:tokens]

    def chunk_loss(d_head, inputs):
        h, target, weight = inputs
        logits = []
        for matrix, valid in zip(flat_head, masks, strict=True):
            product = jnp.einsum("td,vd->tv", h, matrix, preferred_element_type=jnp.float32)
            logits.append(product if valid is None else jnp.where(valid, product, _MASKED))
        peak = reduction.max([x.max(-1) for x in logits])
        exponentials = [jnp.exp(x - peak[:, None]) for x in logits]
        normalizer = reduction.sum([x.sum(-1) for x in exponentials])
        log_z = jnp.log(normalizer) + peak
        nll = log_z - reduction.sum(
            [_logit_at(x, index) for x, index in zip(logits, target, strict=True)]
        )
        if not with_gradients:
            return d_head, (nll, log_z, None)
        factor = weight * (1.0 + 2.0 * settings.z_weight * log_z) / normalizer
        d_hidden, new = [], []
        for matrix, e, index, d_matrix in zip(flat_head, exponentials, target, d_head, strict=True):
            hit = index[:, None] == jnp.arange(e.shape[-1])
            d_logits = e * factor[:, None] - jnp.where(hit, weight[:, None], 0.0)
            d_logits = d_logits.astype(h.dtype)
            d_hidden.append(
                jnp.einsum("tv,vd->td", d_logits, matrix, preferred_element_type=jnp.float32)
            )
            contract = (((0,), (0,)), ((), ()))
            more = jax.lax.dot_general(d_logits, h, contract, preferred_element_type=jnp.float32)
            new.append(d_matrix + more)
        return tuple(new), (nll, log_z, reduction.sum(d_hidden).astype(h.dtype))

    zeros = tuple(jnp.zeros(m.shape, jnp.float32) for m in flat_head) if with_gradients else ()
    inputs = (split_chunks(hidden), tuple(map(split_chunks, targets)), split_chunks(weights))
    if count == 1:
        d_head, outputs = chunk_loss(zeros, jax.tree.map(lambda x: x[0], inputs))
    else:
        d_head, outputs = jax.lax.scan(chunk_loss, zeros, inputs)
        outputs = jax.tree.map(join_chunks, outputs)
    nll, log_z = outputs[0].reshape(shape), outputs[1].reshape(shape)
    if not with_gradients:
        return nll, log_z, None, None
    d_blocks = tuple(
        reduction.head_gradient(d.reshape(block.shape))
        for d, block in zip(d_head, head, strict=True)
    )
    return nll, log_z, outputs[2].reshape(hidden.shape), d_blocks


def _local_rows(
    vocabulary: VocabularyBlocks, reduction: Reduction, head: Blocks, target_rows: jax.Array
) -> tuple[list[jax.Array], list[jax.Array | None]]:
    """Returns the local indices of the targets and masks of the valid local rows.

    Returns:
      two lists with one entry per block of the head: the index of each target in the flattened rows
      of the block on this device, −1 if the target is in another block or on another device; and a
      mask of the rows that are not padding, bool `[rows]`, None if the block has no padding.
    """
    targets: list[jax.Array] = []
    masks: list[jax.Array | None] = []
    start = 0
    for number, block in enumerate(head):
        valid = np.atleast_2d(vocabulary.valid_blocks[number])
        groups, local, _ = block.shape
        first = reduction.first_row(number, local)
        group, row = jnp.divmod(target_rows - start, valid.shape[1])
        row = row - first
        here = (group >= 0) & (group < groups) & (row >= 0) & (row < local)
        targets.append(jnp.where(here, group * local + row, -1))
        start += valid.size
        if valid.all():
            masks.append(None)
        else:
            mask = jax.lax.dynamic_slice_in_dim(jnp.asarray(valid), first, local, 1)
            masks.append(mask.reshape(-1))
    return targets, masks


def _logit_at(logits: jax.Array, indices: jax.Array) -> jax.Array:
    """Returns the logit at each index; 0 if the index is −1."""
    picked = jnp.take_along_axis(logits, jnp.maximum(indices, 0)[:, None], axis=-1)[:, 0]
    return jnp.where(indices >= 0, picked, 0.0)


def class_sums(
    nll: jax.Array,
    weights: jax.Array,
    classes: jax.Array,
    sources: jax.Array,
    class_count: int,
    source_count: int,
) -> dict[str, jax.Array]:
    """Returns the sums from which the loss vector is computed.

    Args:
      nll, weights: f32 `[batch, sequence]`.
      classes: int `[batch, sequence]`, class of each target.
      sources: int `[batch]`, data source of each row.
      class_count, source_count: number of classes and sources.

    Returns:
      `nll` = Σ weight · nll and `count` = Σ weight, both f32 `[source_count, class_count]`.
    """
    hits = (classes[..., None] == jnp.arange(class_count)) * weights[..., None]
    of_source = jax.nn.one_hot(sources, source_count, dtype=jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    return {
        "nll": jnp.einsum("bs,bsc,bn->nc", nll, hits, of_source, precision=exact),
        "count": jnp.einsum("bsc,bn->nc", hits, of_source, precision=exact),
    }
