"""Computes the loss over a large vocabulary without materializing all logits.

Each token is normalized over all ids (`full_loss.py`) or over its legal set (`legal_loss.py`). The
gradients are computed in the forward pass, which is possible because they are linear in the cotangent
of the summed loss. Each logit therefore needs three matrix products (logits, gradient of the hidden
states, gradient of the head), and nothing is recomputed.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.model.config import VocabularyBlocks
from soda_jax.model.decoder import Decoder
from soda_jax.model.full_loss import Blocks, full_loss
from soda_jax.model.legal import LegalSets
from soda_jax.model.legal_loss import legal_loss
from soda_jax.model.loss_sharding import Reduction, run_sharded
from soda_jax.model.placement import ONE_DEVICE, Placement
from soda_jax.model.products import head_gradient_rows, head_gradient_zeros

Batch = Mapping[str, jax.Array]
# (decoder, hidden `[batch, sequence, d]`, batch) -> f32 scalar, summed over the targets of the batch.
LossTerm = Callable[[Decoder, jax.Array, Batch], jax.Array]

# Tokens per chunk by platform, see docs/performance.md. On a CPU, 512 needs less CPU time and
# memory than 2,048. On a TPU, each chunk reads and writes the gradient of the head, and with
# smaller chunks this traffic would limit narrow models. The value for GPUs is not tuned yet.
CHUNKS: Mapping[str, int] = {"cpu": 512, "tpu": 2048, "gpu": 2048}
# The same for the positions of a legal set with all text. A device has few of them, and the last chunk
# is computed whole.
LEGAL_CHUNKS: Mapping[str, int] = {"cpu": 256, "tpu": 512, "gpu": 512}


class LossSettings(NamedTuple):
    """Static settings of the loss.

    Attributes:
      vocabulary: blocks of rows of the head.
      z_weight: weight of the z-loss, log²Z.
      chunk: tokens per chunk on each device; 0 = the default of the platform of `placement`.
      placement: sharding of the arrays.
      legal: the legal sets, for `legal_cross_entropy`.
      full_every: distance between the positions with the term −log P(legal set); 0 = none.
    """

    vocabulary: VocabularyBlocks
    z_weight: float = 0.0
    chunk: int = 0
    placement: Placement = ONE_DEVICE
    legal: LegalSets | None = None
    full_every: int = 0


def chunk_tokens(chunk: int, platform: str, defaults: Mapping[str, int] = CHUNKS) -> int:
    """Returns the number of tokens per chunk; 0 selects the default of the platform."""
    return chunk or defaults.get(platform, defaults["gpu"])


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
    legal: LegalSets | None = None,
    full_every: int = 0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the summed loss of a batch, and the sums from which its loss vector is computed.

    Args:
      decoder: the bound model.
      batch: `tokens`, `segment_ids`, `positions`, `target_class` int `[batch, sequence]`,
        `loss_mask` f32 `[batch, sequence]`, `source` int `[batch]`; with `legal`, also `legal_set` int
        `[batch, sequence]` and `full_offset` int `[batch]`.
      classes, sources: number of target classes and of data sources.
      z_loss: weight of log²Z.
      loss_chunk: tokens per chunk on each device; 0 = the default of the platform.
      placement: sharding of the arrays.
      terms: further loss terms, see `LossTerm`.
      legal: the legal sets over which the targets are normalized; None = all ids.
      full_every: with `legal`, distance between the positions with the term −log P(legal set), whose
        probability is normalized over all ids; 0 = no such term.

    Returns:
      f32 scalar Σ loss_mask · (nll + z_loss · log²Z) + Σ terms, and a dict of sums: `nll` and
      `count`, f32 `[sources, classes]`, and `log_z_squared`, f32 scalar; with `legal`, also `head_rows`,
      the number of logits that the loss needs, and `text_positions_mean` and `text_positions_worst`, the
      number of positions with the bulk of block 0 per shard of the batch; with `full_every`, also `legal_nll`, Σ −log P(legal set),
      and `legal_nll_count`, the number of its positions.
    """
    vocabulary = decoder.config.vocabulary
    hidden = decoder(batch["tokens"], batch["segment_ids"], batch["positions"], placement=placement)
    # The last position of a window has no target. Its mask is 0, so the token that `roll` puts
    # there does not affect the loss.
    targets = jnp.asarray(vocabulary.row_of_id)[jnp.roll(batch["tokens"], -1, axis=1)]
    weights = batch["loss_mask"].astype(jnp.float32)
    blocks = decoder.head_blocks()
    settings = LossSettings(vocabulary, z_loss, loss_chunk, placement, legal, full_every)
    if legal is None:
        total, nll, log_z = linear_cross_entropy(settings, hidden, blocks, targets, weights)
        outside = None
    else:
        total, nll, log_z, outside = legal_cross_entropy(
            settings, hidden, blocks, targets, weights, batch["legal_set"], batch["full_offset"]
        )
    sums = class_sums(nll, weights, batch["target_class"], batch["source"], classes, sources)
    sums["log_z_squared"] = jnp.sum(weights * jnp.square(log_z))
    if legal is not None:
        counts = _hits(batch["legal_set"], len(legal.sizes), weights > 0).sum(axis=1)
        sums["head_rows"] = jnp.sum(counts * jnp.asarray(legal.sizes, jnp.float32))
        of_rows = jnp.sum(counts * jnp.asarray(legal.has_bulk, jnp.float32), axis=1)
        of_shards = of_rows.reshape(placement.ways("batch", len(of_rows)), -1).sum(axis=1)
        sums["text_positions_mean"] = of_shards.mean()
        sums["text_positions_worst"] = of_shards.max()
    if outside is not None:
        sums["head_rows"] += vocabulary.size * jnp.where(outside.weight > 0, 1.0, 0.0).sum()
        sums["legal_nll"] = jnp.sum(outside.nll)
        sums["legal_nll_count"] = jnp.sum(outside.weight)
    for term in terms:
        total = total + term(decoder, hidden, batch)
    return total, sums


class Outside(NamedTuple):
    """The term −log P(legal set), whose probability is normalized over all ids.

    Attributes:
      nll: weight · −log P(legal set), f32 `[batch, sequence]`; 0 at positions that are not sampled.
      weight: the weights of the sampled positions, f32 `[batch, sequence]`.
    """

    nll: jax.Array
    weight: jax.Array


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
    settings = settings._replace(legal=None)
    total, (nll, log_z, _) = _summed_loss(settings, hidden, blocks, (target_rows, weights))
    return total, nll, log_z


def legal_cross_entropy(
    settings: LossSettings,
    hidden: jax.Array,
    blocks: Blocks,
    target_rows: jax.Array,
    weights: jax.Array,
    sets: jax.Array,
    offsets: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, Outside | None]:
    """Returns the cross-entropy of the targets, each normalized over its legal set.

    Args:
      settings: static settings with `legal`. With `full_every` = m, the positions t of a row with
        t ≡ offset (mod m) have the additional term −log P(legal set).
      hidden, blocks, target_rows, weights: as for `linear_cross_entropy`.
      sets: index of the legal set of each target, int `[batch, sequence]`; ignored where the weight is
        0.
      offsets: int `[batch]`; used only with `full_every`.

    Returns:
      total, nll, log_z: as `linear_cross_entropy`, but nll and log_z are 0 where the weight is 0. total
        includes the additional term.
      outside: the additional term; None without `full_every`.
    """
    inputs = tuple(map(jnp.asarray, (target_rows, weights, sets, offsets)))
    total, (nll, log_z, outside) = _summed_loss(settings, hidden, blocks, inputs)
    return total, nll, log_z, outside


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed_loss(
    settings: LossSettings, hidden: jax.Array, blocks: Blocks, inputs: tuple[jax.Array, ...]
) -> tuple[jax.Array, Any]:
    """Returns the total, and (nll, log_z, outside)."""
    total, outputs, _, _ = _forward(settings, hidden, blocks, inputs, False)
    return total, outputs


def _summed_loss_fwd(settings, hidden, blocks, inputs):
    total, outputs, d_hidden, d_blocks = _forward(settings, hidden, blocks, inputs, True)
    return (total, outputs), (d_hidden, d_blocks, inputs)


def _summed_loss_bwd(settings, saved, cotangents):
    d_hidden, d_blocks, inputs = saved
    scale = cotangents[0]
    return (
        (d_hidden * scale).astype(d_hidden.dtype),
        tuple(block * scale for block in d_blocks),
        jax.tree.map(_no_gradient, inputs),
    )


def _no_gradient(array: jax.Array) -> Any:
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.zeros_like(array)
    return np.zeros(array.shape, jax.dtypes.float0)


_summed_loss.defvjp(_summed_loss_fwd, _summed_loss_bwd)


def _forward(settings, hidden, blocks, inputs, with_gradients):
    """Returns (total, (nll, log_z, outside), d_hidden, d_blocks)."""
    head = tuple(block.astype(hidden.dtype) for block in blocks)
    local_loss = functools.partial(_local_loss, settings, with_gradients)
    outputs, d_hidden, d_blocks = run_sharded(
        local_loss, settings.placement, hidden, head, inputs, with_gradients
    )
    nll, log_z, outside = outputs
    weights = inputs[1]
    total = jnp.sum(weights * (nll + settings.z_weight * jnp.square(log_z)))
    if outside is not None:
        total += jnp.sum(outside.nll)
    return total, outputs, d_hidden, d_blocks


def _local_loss(
    settings: LossSettings,
    with_gradients: bool,
    reduction: Reduction,
    hidden: jax.Array,
    head: Blocks,
    target_rows: jax.Array,
    weights: jax.Array,
    *legal_inputs: jax.Array,
) -> Any:
    """Returns ((nll, log_z, outside), d_hidden, d_blocks).

    The first two are for the local tokens; d_blocks is summed over the tokens of all devices.
    """
    platform = settings.placement.platform
    chunk = chunk_tokens(settings.chunk, platform)
    full = functools.partial(
        full_loss, settings.vocabulary, chunk=chunk, platform=platform,
        with_gradients=with_gradients, reduction=reduction, head=head,
    )  # fmt: skip
    outside = None
    if settings.legal is None:
        nll, log_z, d_hidden, d_head = full(
            z_weight=settings.z_weight, hidden=hidden, target_rows=target_rows, weights=weights
        )
    else:
        sets, offsets = legal_inputs
        full_weights = jnp.zeros_like(weights)
        d_head = tuple(head_gradient_zeros(b, platform) for b in head) if with_gradients else head
        every = settings.full_every
        if every:
            at = _sampled(every, reduction, offsets, weights.shape)
            sampled = weights.at[at].get(mode="fill", fill_value=0)
            full_weights = full_weights.at[at].set(sampled, mode="drop")
            _, full_z, d_sampled, d_sum = full(
                z_weight=0.0,
                hidden=hidden.at[at].get(mode="fill", fill_value=0),
                target_rows=jnp.full(sampled.shape, -1),
                weights=sampled,
            )
            d_head = d_sum if with_gradients else d_head
        nll, log_z, d_hidden, d_head = legal_loss(
            settings.legal, settings.z_weight, chunk_tokens(settings.chunk, platform, LEGAL_CHUNKS),
            platform, with_gradients, reduction, hidden, head, target_rows, weights, sets, full_weights, d_head,
        )  # fmt: skip
        if every:
            full_z = jnp.zeros_like(log_z).at[at].set(full_z, mode="drop")
            outside = Outside(full_weights * (full_z - log_z), full_weights)
            if d_hidden is not None:
                d_hidden = d_hidden.at[at].add(d_sampled, mode="drop")
    if not with_gradients:
        return (nll, log_z, outside), None, None
    d_head = tuple(reduction.head_gradient(head_gradient_rows(d, platform)) for d in d_head)
    return (nll, log_z, outside), d_hidden, d_head


def _sampled(
    every: int, reduction: Reduction, offsets: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns the local indices (row, position) of the positions ≡ offset (mod every), `[batch, n]`.

    n does not depend on the offsets; an index that is not needed is out of range.
    """
    rows, length = shape
    first = (offsets - reduction.first_position(length)) % every
    positions = first[:, None] + every * jnp.arange(-(-length // every))
    return jnp.arange(rows)[:, None], positions


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
    hits = _hits(classes, class_count, weights)
    of_source = jax.nn.one_hot(sources, source_count, dtype=jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    return {
        "nll": jnp.einsum("bs,bsc,bn->nc", nll, hits, of_source, precision=exact),
        "count": jnp.einsum("bsc,bn->nc", hits, of_source, precision=exact),
    }


def _hits(numbers: jax.Array, count: int, weights: jax.Array) -> jax.Array:
    """Returns a one-hot encoding of `numbers`, multiplied by `weights`, f32 `[…, count]`.

    The comparison is in the dtype of `numbers`: the TPU compiler (libtpu 0.0.42) aborts at some shapes when it
    fuses a conversion of int8 to int32 into a sum.
    """
    same = numbers[..., None] == jnp.arange(count, dtype=numbers.dtype)
    return jnp.where(same, weights[..., None].astype(jnp.float32), 0.0)
