"""Cross-entropy of a large head without its logits.

The tokens are cut into chunks, the last one padded; only one chunk's logits exist at a time. The
gradients are computed in the forward pass (they are linear in the cotangent of the summed loss), so
that the head is multiplied three times, as by the plain loss, and nothing is recomputed.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from soda_jax.model.placement import OneDevice, Placement

Blocks = tuple[jax.Array, ...]
_MASKED = -1e30
_HERE = OneDevice()

# Tokens of a chunk, by platform; docs/performance.md has what stands behind them. CPU: a chunk's logits pass
# through the caches. TPU: each chunk reads and writes the gradient of the head, and with fewer tokens that,
# not arithmetic, is the limit of the step. GPU: not tuned yet.
CHUNKS: Mapping[str, int] = {"cpu": 512, "tpu": 2048, "gpu": 2048}


class LossSettings(NamedTuple):
    """Static settings of the loss.

    Attributes:
      valid_rows: for each block, the rows that are not padding, as the bytes of bools `[groups · rows]`.
      z_weight: weight of the z-loss, log²Z.
      chunk: tokens whose logits exist at a time, on each device.
      placement: of the arrays.
    """

    valid_rows: tuple[bytes, ...]
    z_weight: float
    chunk: int
    placement: Placement = _HERE


def chunk_tokens(chunk: int, platform: str) -> int:
    """Tokens of a chunk: `chunk` itself, or that of `CHUNKS` for 0."""
    return chunk or CHUNKS.get(platform, CHUNKS["gpu"])


def loss_settings(
    valid_rows: np.ndarray,
    blocks: Blocks,
    z_weight: float,
    chunk: int,
    placement: Placement = _HERE,
) -> LossSettings:
    """Makes `LossSettings`.

    Args:
      valid_rows: of all blocks, bool `[rows]`.
      blocks: the head.
      z_weight: weight of the z-loss.
      chunk: tokens whose logits exist at a time, on each device; 0: by the platform of `placement`.
      placement: of the arrays.
    """
    ends = np.cumsum([0, *(block.shape[0] * block.shape[1] for block in blocks)])
    parts = [valid_rows[a:b].tobytes() for a, b in itertools.pairwise(ends)]
    chunk = chunk_tokens(int(chunk), placement.platform)
    return LossSettings(tuple(parts), float(z_weight), chunk, placement)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_cross_entropy(
    settings: LossSettings,
    hidden: jax.Array,
    blocks: Blocks,
    target_rows: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Summed loss of `hidden` times the rows of all blocks against `target_rows`.

    Every device works through its own tokens with the whole width of its rows of the head, and adds up
    the gradient of those rows; what the devices found is added once, at the end.

    Args:
      settings: padding rows, z-loss weight, chunk, placement.
      hidden: `[batch, sequence, d]`.
      blocks: parts of the head `[groups, rows, d]`; a target row counts through them in order.
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
    """(total, nll, log_z, d_hidden, d_blocks), each device at its part of the arrays."""
    place = settings.placement
    head = tuple(block.astype(hidden.dtype) for block in blocks)
    laid = place.sharding(("batch", "sequence", None), hidden.shape)
    if laid is None:
        function = functools.partial(
            _on_part, settings, with_gradients, _Split((), (), ((),) * len(blocks))
        )
        nll, log_z, d_hidden, d_blocks = function(hidden, head, target_rows, weights)
    else:
        tokens = PartitionSpec(*laid.spec[:2])
        summed = _names(tokens)
        rows = [place.sharding((None, "vocabulary", None), b.shape).spec for b in blocks]
        # A gradient goes where its parameter lies, as far as the sum over the tokens passes there.
        width = _names(place.sharding((None, "embed"), blocks[0].shape[1:]).spec)
        width = width if set(width) <= set(summed) else ()
        split = _Split(summed, width, tuple(_names(spec) for spec in rows))
        gradients = [PartitionSpec(None, spec[1], width or None) for spec in rows]
        inputs = (laid.spec, tuple(rows), tokens, tokens)
        output: Any = (tokens, tokens, laid.spec, tuple(gradients))
        if not with_gradients:
            output = (tokens, tokens, None, None)
        function = functools.partial(_on_part, settings, with_gradients, split)
        nll, log_z, d_hidden, d_blocks = place.on_shards(function, inputs, output)(
            hidden, head, target_rows, weights
        )
    total = jnp.sum(weights * (nll + settings.z_weight * jnp.square(log_z)))
    return total, nll, log_z, d_hidden, d_blocks


class _Split(NamedTuple):
    """Mesh axes over which a device's part must talk to others.

    Attributes:
      tokens: that split the tokens.
      width: those of them that split the width of the head's gradient.
      rows: for each block, those that split its rows.
    """

    tokens: tuple[str, ...]
    width: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _names(spec: PartitionSpec) -> tuple[str, ...]:
    return tuple(
        name for part in spec if part for name in ((part,) if isinstance(part, str) else part)
    )


def _on_part(settings, with_gradients, split, hidden, head, target_rows, weights):
    """(nll, log_z, d_hidden, d_blocks) of local tokens; the gradients are sums over all tokens."""
    shape, tokens = target_rows.shape, target_rows.size
    count, length = _chunks(tokens, settings.chunk)
    flat_head = tuple(block.reshape(-1, block.shape[-1]) for block in head)
    targets = _places(settings, head, split.rows, target_rows)
    masks = [
        _local_rows(np.frombuffer(valid, bool), block.shape, axes)
        for valid, block, axes in zip(settings.valid_rows, head, split.rows, strict=True)
    ]

    def cut(x):
        x = x.reshape(tokens, *x.shape[2:])
        if padding := count * length - tokens:  # zeros have weight 0, so no loss and no gradient
            x = jnp.pad(x, ((0, padding), *((0, 0) for _ in x.shape[1:])))
        return x.reshape(count, length, *x.shape[1:])

    def join(x):
        return x.reshape(count * length, *x.shape[2:])[:tokens]

    def chunk(d_head, inputs):
        h, places, weight = inputs
        logits = []
        for matrix, valid in zip(flat_head, masks, strict=True):
            product = jnp.einsum("td,vd->tv", h, matrix, preferred_element_type=jnp.float32)
            logits.append(product if valid is None else jnp.where(valid, product, _MASKED))
        peak = functools.reduce(jnp.maximum, [_over(jax.lax.pmax, x.max(-1), axes)
                                              for x, axes in zip(logits, split.rows, strict=True)])  # fmt: skip
        exponentials = [jnp.exp(x - peak[:, None]) for x in logits]
        normaliser = _added([x.sum(-1) for x in exponentials], split.rows)
        log_z = jnp.log(normaliser) + peak
        hits = [_at(x, place) for x, place in zip(logits, places, strict=True)]
        nll = log_z - _added(hits, split.rows)
        if not with_gradients:
            return d_head, (nll, log_z, None)
        factor = weight * (1.0 + 2.0 * settings.z_weight * log_z) / normaliser
        d_hidden, new = [], []
        for matrix, e, place, d_matrix in zip(flat_head, exponentials, places, d_head, strict=True):
            hit = place[:, None] == jnp.arange(e.shape[-1])
            d_logits = e * factor[:, None] - jnp.where(hit, weight[:, None], 0.0)
            d_logits = d_logits.astype(h.dtype)
            d_hidden.append(
                jnp.einsum("tv,vd->td", d_logits, matrix, preferred_element_type=jnp.float32)
            )
            contract = (((0,), (0,)), ((), ()))
            more = jax.lax.dot_general(d_logits, h, contract, preferred_element_type=jnp.float32)
            new.append(d_matrix + more)
        return tuple(new), (nll, log_z, _added(d_hidden, split.rows).astype(h.dtype))

    zeros = tuple(jnp.zeros(m.shape, jnp.float32) for m in flat_head) if with_gradients else ()
    inputs = (cut(hidden), tuple(cut(t) for t in targets), cut(weights))
    if count == 1:
        d_head, outputs = chunk(zeros, jax.tree.map(lambda x: x[0], inputs))
    else:
        d_head, outputs = jax.lax.scan(chunk, zeros, inputs)
        outputs = jax.tree.map(join, outputs)
    nll, log_z = outputs[0].reshape(shape), outputs[1].reshape(shape)
    if not with_gradients:
        return nll, log_z, None, None
    d_blocks = tuple(
        _summed(d.reshape(block.shape), split) for d, block in zip(d_head, head, strict=True)
    )
    return nll, log_z, outputs[2].reshape(hidden.shape), d_blocks


def _chunks(tokens: int, chunk: int) -> tuple[int, int]:
    """Returns number and length of the chunks: as few as `chunk` allows, and no longer than needed."""
    count = -(-tokens // max(1, chunk))
    return count, -(-tokens // count)


def _places(settings, head, rows, target_rows):
    """For each block, the place of each target among the device's rows, −1 where it is not there."""
    places, start = [], 0
    for valid, block, axes in zip(settings.valid_rows, head, rows, strict=True):
        groups, local, _ = block.shape
        group, row = jnp.divmod(target_rows - start, len(valid) // groups)
        row = row - _first_row(local, axes)
        here = (group >= 0) & (group < groups) & (row >= 0) & (row < local)
        places.append(jnp.where(here, group * local + row, -1))
        start += len(valid)
    return places


def _first_row(local: int, axes: tuple[str, ...]) -> Any:
    return jax.lax.axis_index(axes) * local if axes else 0


def _local_rows(valid: np.ndarray, shape: tuple[int, ...], axes: tuple[str, ...]) -> Any:
    """The mask of the device's rows, bool `[groups · local rows]`; None if no row is padding."""
    if valid.all():
        return None
    groups, local, _ = shape
    mask = jnp.asarray(valid.reshape(groups, -1))
    return jax.lax.dynamic_slice_in_dim(mask, _first_row(local, axes), local, 1).reshape(-1)


def _over(operation: Any, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return operation(x, axes) if axes else x


def _added(parts: list[jax.Array], rows: tuple[tuple[str, ...], ...]) -> jax.Array:
    """The sum over blocks, and over the devices that hold other rows of a block."""
    split = [part for part, axes in zip(parts, rows, strict=True) if axes]
    whole = [part for part, axes in zip(parts, rows, strict=True) if not axes]
    axes = next((axes for axes in rows if axes), ())
    if split:
        whole.append(jax.lax.psum(functools.reduce(jnp.add, split), axes))
    return functools.reduce(jnp.add, whole)


def _summed(gradient: jax.Array, split: _Split) -> jax.Array:
    """The sum over all tokens of a local gradient `[groups, rows, d]`, cut along d over `split.width`."""
    for axis in split.width:
        gradient = jax.lax.psum_scatter(gradient, axis, scatter_dimension=2, tiled=True)
    return _over(jax.lax.psum, gradient, tuple(a for a in split.tokens if a not in split.width))


def _at(logits: jax.Array, places: jax.Array) -> jax.Array:
    """The logit at each place, 0 where it is −1."""
    picked = jnp.take_along_axis(logits, jnp.maximum(places, 0)[:, None], axis=-1)[:, 0]
    return jnp.where(places >= 0, picked, 0.0)


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
