"""Cross-entropy of a large head without its logits.

The tokens are cut into chunks; only one chunk's logits exist at a time. The gradients are computed
in the forward pass (they are linear in the cotangent of the summed loss), so that the head is
multiplied three times, as by the plain loss, and nothing is recomputed.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Blocks = tuple[jax.Array, ...]
_MASKED = -1e30


class LossSettings(NamedTuple):
    """Static settings of the loss.

    Attributes:
      valid_rows: for each block, the rows that are not padding, as a tuple of bools' bytes.
      z_weight: weight of the z-loss, log²Z.
      chunk: tokens whose logits exist at a time.
      sequence_shards: over how many devices the sequence is split; a chunk takes a part of each.
    """

    valid_rows: tuple[bytes, ...]
    z_weight: float
    chunk: int
    sequence_shards: int = 1


def loss_settings(
    valid_rows: np.ndarray,
    block_rows: tuple[int, ...],
    z_weight: float,
    chunk: int,
    sequence_shards: int = 1,
) -> LossSettings:
    """Makes `LossSettings` from the valid rows of all blocks, bool `[rows]`."""
    ends = np.cumsum((0, *block_rows))
    parts = [valid_rows[a:b].tobytes() for a, b in itertools.pairwise(ends)]
    return LossSettings(tuple(parts), float(z_weight), int(chunk), sequence_shards)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_cross_entropy(
    settings: LossSettings,
    hidden: jax.Array,
    blocks: Blocks,
    target_rows: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Summed loss of `hidden @ concatenate(blocks).T` against `target_rows`.

    Args:
      settings: padding rows, z-loss weight, chunk.
      hidden: `[batch, sequence, d]`.
      blocks: head matrices `[rows_i, d]`; a target row counts through them in order.
      target_rows: int32 `[batch, sequence]`.
      weights: f32 `[batch, sequence]`, 0 where there is no loss.

    Returns:
      total: f32 scalar, Σ weight · (nll + z_weight · log²Z). Only this output has a gradient.
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
    batch, sequence, _ = hidden.shape
    shards = settings.sequence_shards
    # Chunks are cut along the sequence, inside each device's part, so that the sharding stays.
    length = max(1, min(sequence, settings.chunk // batch) // shards)
    while (sequence // shards) % length:
        length -= 1
    count = sequence // shards // length
    # Tokens of a chunk as one axis: two-dimensional products need no transposed copies.
    flat = (batch * length,) if shards == 1 else (batch, shards, length)

    def cut(x):
        parts = x.reshape(batch, shards, count, length, *x.shape[2:])
        return jnp.moveaxis(parts, 2, 0).reshape(count, *flat, *x.shape[2:])

    def join(x):
        parts = x.reshape(count, batch, shards, length, *x.shape[1 + len(flat) :])
        return jnp.moveaxis(parts, 0, 2).reshape(batch, sequence, *parts.shape[4:])

    head = tuple(block.astype(hidden.dtype) for block in blocks)
    starts = np.cumsum((0, *(block.shape[0] for block in blocks)))
    masks = [np.frombuffer(valid, bool) for valid in settings.valid_rows]

    def chunk(d_blocks, inputs):
        h, target, weight = inputs
        logits = []
        for matrix, valid in zip(head, masks, strict=True):
            product = jnp.einsum("...d,vd->...v", h, matrix, preferred_element_type=jnp.float32)
            logits.append(product if valid.all() else jnp.where(valid, product, _MASKED))
        peak = functools.reduce(jnp.maximum, [x.max(-1) for x in logits])
        exponentials = [jnp.exp(x - peak[..., None]) for x in logits]
        normaliser = sum(x.sum(-1) for x in exponentials)
        log_z = jnp.log(normaliser) + peak
        at_target = sum(
            _at(x, target - start) for x, start in zip(logits, starts[:-1], strict=True)
        )
        nll = log_z - at_target
        if not with_gradients:
            return d_blocks, (nll, log_z, None)
        factor = weight * (1.0 + 2.0 * settings.z_weight * log_z) / normaliser
        d_hidden, new = jnp.zeros(h.shape, jnp.float32), []
        leading = tuple(range(len(flat)))
        for matrix, e, start, d_block in zip(
            head, exponentials, starts[:-1], d_blocks, strict=True
        ):
            hit = (target - start)[..., None] == jnp.arange(e.shape[-1])
            d_logits = e * factor[..., None] - jnp.where(hit, weight[..., None], 0.0)
            d_logits = d_logits.astype(h.dtype)
            d_hidden += jnp.einsum(
                "...v,vd->...d", d_logits, matrix, preferred_element_type=jnp.float32
            )
            contract = ((leading, leading), ((), ()))
            new.append(
                d_block
                + jax.lax.dot_general(d_logits, h, contract, preferred_element_type=jnp.float32)
            )
        return tuple(new), (nll, log_z, d_hidden.astype(h.dtype))

    zeros = tuple(jnp.zeros(block.shape, jnp.float32) for block in blocks) if with_gradients else ()
    inputs = (cut(hidden), cut(target_rows), cut(weights))
    if count == 1:
        d_blocks, outputs = chunk(zeros, jax.tree.map(lambda x: x[0], inputs))
        outputs = jax.tree.map(lambda x: x[None], outputs)
    else:
        d_blocks, outputs = jax.lax.scan(chunk, zeros, inputs)
    nll, log_z = join(outputs[0]), join(outputs[1])
    total = jnp.sum(weights * (nll + settings.z_weight * jnp.square(log_z)))
    d_hidden = join(outputs[2]) if with_gradients else None
    return total, nll, log_z, d_hidden, d_blocks


def _at(logits: jax.Array, rows: jax.Array) -> jax.Array:
    """The logit of each token's target, 0 where the target is in another block."""
    size = logits.shape[-1]
    inside = (rows >= 0) & (rows < size)
    picked = jnp.take_along_axis(logits, jnp.clip(rows, 0, size - 1)[..., None], axis=-1)[..., 0]
    return jnp.where(inside, picked, 0.0)


def class_sums(
    nll: jax.Array,
    weights: jax.Array,
    classes: jax.Array,
    sources: jax.Array,
    class_count: int,
    source_count: int,
) -> dict[str, jax.Array]:
    """Sums from which the loss vector is made.

    Args:
      nll, weights: f32 `[batch, sequence]`.
      classes: int `[batch, sequence]`, class of each target.
      sources: int `[batch]`, data source of each row.
      class_count, source_count: how many there are.

    Returns:
      `nll` and `count`, f32 `[source_count, class_count]`: Σ weight · nll and Σ weight.
    """
    hits = (classes[..., None] == jnp.arange(class_count)) * weights[..., None]
    of_source = jax.nn.one_hot(sources, source_count, dtype=jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    return {
        "nll": jnp.einsum("bs,bsc,bn->nc", nll, hits, of_source, precision=exact),
        "count": jnp.einsum("bsc,bn->nc", hits, of_source, precision=exact),
    }
