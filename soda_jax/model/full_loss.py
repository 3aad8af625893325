"""Computes the cross-entropy of each token over the whole vocabulary, on one device.

Tokens are processed in chunks of equal length, the last one padded, so only the logits of one chunk
exist at a time. `loss.py` describes the gradients, and `loss_sharding` combines the results of all
devices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.model.config import VocabularyBlocks
from soda_jax.model.loss_sharding import Reduction
from soda_jax.model.products import head_gradient, head_gradient_zeros

Blocks = tuple[jax.Array, ...]
_MASKED = -1e30
# Rows of a tile of the head, in losses without gradients on a CPU.
_TILE = 2048


def full_loss(
    vocabulary: VocabularyBlocks,
    z_weight: float,
    chunk: int,
    platform: str,
    with_gradients: bool,
    reduction: Reduction,
    hidden: jax.Array,
    head: Blocks,
    target_rows: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """Returns the loss of the local tokens and the gradients of their sum.

    Args:
      vocabulary: blocks of rows of the head.
      z_weight: weight of log²Z.
      chunk: tokens per chunk.
      platform: platform of the device.
      with_gradients: whether to compute the gradients.
      reduction: the mesh axes over which rows of the head are split.
      hidden: `[batch, sequence, d]`.
      head: blocks `[groups, rows, d]` with the local rows, in the dtype of `hidden`.
      target_rows: row of each target, int32 `[batch, sequence]`; with −1, nll is log Z.
      weights: weight of each target, f32 `[batch, sequence]`.

    Returns:
      nll and log Z, f32 `[batch, sequence]`; the gradient of `hidden`; and that of the local rows of
      the head, f32, in the form of `products.head_gradient`, summed over the local tokens only. The
      gradients are None without `with_gradients`.
    """
    shape, tokens = target_rows.shape, target_rows.size
    # The smallest number of chunks of at most `chunk` tokens, and the smallest equal chunk length.
    count = -(-tokens // max(1, chunk))
    length = -(-tokens // count)
    flat_head = tuple(block.reshape(-1, block.shape[-1]) for block in head)
    targets, masks = _local_rows(vocabulary, reduction, head, target_rows)

    def split_chunks(x):
        x = x.reshape(tokens, *x.shape[2:])
        if padding := count * length - tokens:  # padding has weight 0: no loss, no gradient
            x = jnp.pad(x, ((0, padding), *((0, 0) for _ in x.shape[1:])))
        return x.reshape(count, length, *x.shape[1:])

    def join_chunks(x):
        return x.reshape(count * length, *x.shape[2:])[:tokens]

    def streamed_loss(inputs):
        h, target, _ = inputs
        parts = [
            _streamed(h, matrix, valid, index)
            for matrix, valid, index in zip(flat_head, masks, target, strict=True)
        ]
        peak = reduction.max([part.peak for part in parts])
        sums = [part.normalizer * jnp.exp(part.peak - peak) for part in parts]
        log_z = jnp.log(reduction.sum(sums)) + peak
        return log_z - reduction.sum([part.target for part in parts]), log_z, None

    def chunk_loss(d_head, inputs):
        if not with_gradients and platform == "cpu":
            return d_head, streamed_loss(inputs)
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
        factor = weight * (1.0 + 2.0 * z_weight * log_z) / normalizer
        d_hidden, new = [], []
        for matrix, e, index, d_matrix in zip(flat_head, exponentials, target, d_head, strict=True):
            hit = index[:, None] == jnp.arange(e.shape[-1])
            d_logits = e * factor[:, None] - jnp.where(hit, weight[:, None], 0.0)
            d_logits = d_logits.astype(h.dtype)
            d_hidden.append(
                jnp.einsum("tv,vd->td", d_logits, matrix, preferred_element_type=jnp.float32)
            )
            new.append(d_matrix + head_gradient(d_logits, h, platform))
        return tuple(new), (nll, log_z, reduction.sum(d_hidden).astype(h.dtype))

    zeros = tuple(head_gradient_zeros(m[None], platform)[0] for m in flat_head)
    zeros = zeros if with_gradients else ()
    inputs = (split_chunks(hidden), tuple(map(split_chunks, targets)), split_chunks(weights))
    if count == 1:
        d_head, outputs = chunk_loss(zeros, jax.tree.map(lambda x: x[0], inputs))
    else:
        d_head, outputs = jax.lax.scan(chunk_loss, zeros, inputs)
        outputs = jax.tree.map(join_chunks, outputs)
    nll, log_z = outputs[0].reshape(shape), outputs[1].reshape(shape)
    if not with_gradients:
        return nll, log_z, None, None
    d_blocks = tuple(_in_groups(d, block, platform) for d, block in zip(d_head, head, strict=True))
    return nll, log_z, outputs[2].reshape(hidden.shape), d_blocks


class _Streamed(NamedTuple):
    """Of a block of the head, for each token, f32 `[tokens]`.

    Attributes:
      peak: the largest logit.
      normalizer: Σ exp(logit − peak).
      target: the logit of the target, 0 if it is not in this block.
    """

    peak: jax.Array
    normalizer: jax.Array
    target: jax.Array


def _streamed(
    h: jax.Array, matrix: jax.Array, valid: jax.Array | None, index: jax.Array
) -> _Streamed:
    """Reads a block of the head in tiles, whose logits fit into the cache of a CPU.

    With all logits of a chunk in memory, the exponentials take as long as the product.

    Args:
      h: `[tokens, d]`.
      matrix: rows of the head `[rows, d]`.
      valid: rows that are not padding, bool `[rows]`; None for all.
      index: row of the target, −1 if it is not in this block, `[tokens]`.
    """
    rows = matrix.shape[0]
    tile = min(_TILE, rows)

    def add(number, carry):
        peak, normalizer = carry
        # The last tile overlaps the one before; its first rows are masked.
        first = jnp.minimum(number * tile, rows - tile)
        part = jax.lax.dynamic_slice_in_dim(matrix, first, tile)
        logits = jnp.einsum("td,vd->tv", h, part, preferred_element_type=jnp.float32)
        new = first + jnp.arange(tile) >= number * tile
        if valid is not None:
            new &= jax.lax.dynamic_slice_in_dim(valid, first, tile)
        if valid is not None or rows % tile:
            logits = jnp.where(new, logits, _MASKED)
        higher = jnp.maximum(peak, logits.max(-1))
        exponentials = jnp.exp(logits - higher[:, None]).sum(-1)
        return higher, normalizer * jnp.exp(peak - higher) + exponentials

    zero = jnp.zeros_like(h[:, 0], jnp.float32)
    peak, normalizer = jax.lax.fori_loop(0, -(-rows // tile), add, (zero + _MASKED, zero))
    chosen = matrix[jnp.maximum(index, 0)].astype(jnp.float32)
    logit = jnp.sum(h.astype(jnp.float32) * chosen, axis=-1)
    return _Streamed(peak, normalizer, jnp.where(index >= 0, logit, 0.0))


def _in_groups(gradient: jax.Array, block: jax.Array, platform: str) -> jax.Array:
    """Returns the gradient of a flattened block in the form of `head_gradient_zeros(block)`."""
    groups, rows, width = block.shape
    if platform != "cpu":
        return gradient.reshape(block.shape)
    return gradient.reshape(width, groups, rows).swapaxes(0, 1)


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
