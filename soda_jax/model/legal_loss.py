"""Computes the cross-entropy of each token over its legal set, on one device.

Positions are grouped by their legal set. A set with a group of block 1 has a static capacity (see
`GroupBatch`), so its positions are gathered into slots, and one batched product serves several sets.
Positions whose set contains the bulk of block 0 are packed and processed in chunks, in a loop whose
length depends on the data. The logits of the single rows are computed for all positions. As in
`loss.py`, the gradients are computed in the forward pass, and `loss_sharding` combines the results of
all devices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.model.legal import NO_SET, GroupBatch, LegalSets
from soda_jax.model.loss_sharding import Reduction
from soda_jax.model.products import head_gradient

_MASKED = -1e30
_NOWHERE = 1 << 30  # an index outside every array
_OVER_TOKENS = (((0,), (0,)), ((), ()))


class Positions(NamedTuple):
    """Positions with all that their loss needs; every array has leading axes `[…]` for the positions.

    Attributes:
      hidden: `[…, d]`.
      target: row of the target in the head, int32.
      weight: weight of the loss, f32.
      full_weight: weight of the term log Z(all) − log Z, f32.
      single_z: log Σ exp of the logits of the legal single rows, f32; very negative if there are none.
      single_target: the logit of the target if it is a single row, else 0, f32.
    """

    hidden: jax.Array
    target: jax.Array
    weight: jax.Array
    full_weight: jax.Array
    single_z: jax.Array
    single_target: jax.Array

    def at(self, index: jax.Array) -> "Positions":
        """Returns the positions `index`; all values of an index that is out of range are 0."""
        return Positions(*(x.at[index].get(mode="fill", fill_value=0) for x in self))

    def scale(self, z_weight: float, log_z: jax.Array) -> jax.Array:
        """Returns the derivative of the loss with respect to log Z, f32 `[…]`."""
        return self.weight * (1.0 + 2.0 * z_weight * log_z) - self.full_weight


class Losses(NamedTuple):
    """Results for positions: nll and log Z, f32 `[…]`, and the gradient of `hidden` or None."""

    nll: jax.Array
    log_z: jax.Array
    d_hidden: jax.Array | None


class Rows(NamedTuple):
    """Rows of the head over which some positions are normalized, in addition to the single rows.

    Attributes:
      block: number of the block.
      matrix: the local rows, `[…, rows, d]`, with an axis per set if the positions have one.
      valid: mask of the rows that are ids of the set, bool `[…, rows]`, or None for all.
      start: row number of the first local row of each set in the head, int `[…]`.
    """

    block: int
    matrix: jax.Array
    valid: jax.Array | None
    start: Any


def legal_loss(
    legal: LegalSets,
    z_weight: float,
    chunk: int,
    platform: str,
    with_gradients: bool,
    reduction: Reduction,
    hidden: jax.Array,
    head: tuple[jax.Array, ...],
    target_rows: jax.Array,
    weights: jax.Array,
    sets: jax.Array,
    full_weights: jax.Array,
    d_head: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array, jax.Array | None, tuple[jax.Array, ...]]:
    """Returns the loss of the local positions and the gradients of their sum.

    Args:
      legal: the legal sets.
      z_weight: weight of log²Z.
      chunk: positions per chunk whose set contains the bulk of block 0.
      platform: platform of the device.
      with_gradients: whether to compute the gradients.
      reduction: the mesh axes over which rows of the head are split.
      hidden: `[batch, sequence, d]`.
      head: blocks `[groups, rows, d]` with the local rows, in the dtype of `hidden`.
      target_rows: row of each target, int32 `[batch, sequence]`.
      weights: weight of each target, f32 `[batch, sequence]`.
      sets: legal set of each target, int `[batch, sequence]`; ignored where the weight is 0.
      full_weights: weights of the term log Z(all) − log Z, of which the gradient of the second part is
        included, f32 `[batch, sequence]`.
      d_head: the arrays of `products.head_gradient_zeros`, to which the gradient of the head is added;
        the sum is over the local positions only. Not used without gradients.

    Returns:
      nll and log Z, f32 `[batch, sequence]`: 0 where the weight is 0, and NaN where a set is more
      frequent than its period allows; the gradient of `hidden`; and the sum of `d_head` and that of the
      head.
    """
    shape, tokens = target_rows.shape, target_rows.size
    sets = jnp.where(weights > 0, sets.astype(jnp.int32), NO_SET)
    flat_sets = sets.reshape(tokens)
    rows = _single_rows(legal, reduction, head[0])
    flat_hidden, target = hidden.reshape(tokens, -1), target_rows.reshape(tokens)
    logits = jnp.einsum("td,md->tm", flat_hidden, rows, preferred_element_type=jnp.float32)
    logits = jnp.where(_lookup(legal.has_single, flat_sets), logits, _MASKED)
    hit = target[:, None] == legal.single_rows
    positions = Positions(
        flat_hidden,
        target,
        weights.reshape(tokens),
        full_weights.reshape(tokens),
        jax.nn.logsumexp(logits, axis=-1) if len(rows) else jnp.full(tokens, _MASKED),
        jnp.where(hit, logits, 0.0).sum(-1),
    )
    d_first, *d_groups = d_head

    # The results of all parts are joined; `index` is where each position finds its own.
    parts: list[Losses] = []
    index, overflow, start = jnp.full(tokens, _NOWHERE), jnp.zeros(tokens, bool), 0
    for batch in legal.batches:
        slots = _slots(batch, sets)
        chosen = _group_rows(legal, reduction, batch, head[1])
        part, d_rows = _losses(
            chosen, positions.at(slots.position), z_weight, platform, reduction, with_gradients
        )
        parts.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), part))
        index = jnp.where(slots.slot >= 0, start + slots.slot, index)
        overflow |= slots.overflow
        start += slots.position.size
        if with_gradients:
            stop = batch.first_group + len(batch.sets)
            d_groups = [d_groups[0].at[batch.first_group : stop].add(d_rows)]
    part, rank, d_first = _bulk_losses(
        legal, z_weight, chunk, platform, with_gradients, reduction, head[0], positions, flat_sets,
        d_first,
    )  # fmt: skip
    parts.append(part)
    index = jnp.where(_lookup(legal.has_bulk, flat_sets), start + rank, index)

    def join(arrays: tuple[jax.Array, ...]) -> jax.Array:
        return jnp.concatenate(arrays).at[index].get(mode="fill", fill_value=0)

    only_singles = (index == _NOWHERE) & _lookup(np.any(legal.has_single, axis=1), flat_sets)
    log_z = jnp.where(only_singles, positions.single_z, join(tuple(p.log_z for p in parts)))
    nll = join(tuple(part.nll for part in parts))
    nll = jnp.where(only_singles, positions.single_z - positions.single_target, nll)
    nll, log_z = (jnp.where(overflow, jnp.nan, x).reshape(shape) for x in (nll, log_z))
    if not with_gradients:
        return nll, log_z, None, ()
    d_hidden = join(tuple(part.d_hidden for part in parts if part.d_hidden is not None))
    flat_log_z = log_z.reshape(tokens)
    probability = jnp.exp(logits - flat_log_z[:, None])
    d_logits = probability * positions.scale(z_weight, flat_log_z)[:, None]
    d_logits = (d_logits - jnp.where(hit, positions.weight[:, None], 0.0)).astype(hidden.dtype)
    d_hidden += jnp.einsum("tm,md->td", d_logits, rows, preferred_element_type=jnp.float32)
    d_rows = jax.lax.dot_general(
        d_logits, flat_hidden, _OVER_TOKENS, preferred_element_type=jnp.float32
    )
    local, here = _local(legal.single_rows, reduction, head[0])
    at = jnp.where(here, local, _NOWHERE)
    if platform == "cpu":  # `[1, d, rows]`
        d_first = d_first.at[0, :, at].add(d_rows, mode="drop")
    else:
        d_first = d_first.at[0, at].add(d_rows, mode="drop")
    return nll, log_z, d_hidden.astype(hidden.dtype).reshape(hidden.shape), (d_first, *d_groups)


class _Slots(NamedTuple):
    """The positions of each set of a `GroupBatch`.

    Attributes:
      position: index of the position in each slot, out of range if the slot is empty, int32
        `[sets, batch · capacity]`.
      slot: index of the slot of each position in the flattened `position`, −1 if its set is not in the
        batch, int32 `[tokens]`.
      overflow: True for a position of these sets without a slot, bool `[tokens]`.
    """

    position: jax.Array
    slot: jax.Array
    overflow: jax.Array


def _slots(batch: GroupBatch, sets: jax.Array) -> _Slots:
    rows, length = sets.shape
    count, capacity = len(batch.sets), batch.capacity(length)
    hits = sets[..., None] == jnp.array(batch.sets)
    rank = jnp.where(hits, jnp.cumsum(hits, axis=1), 0).sum(-1) - 1
    number = jnp.where(hits, jnp.arange(count), 0).sum(-1)
    slot = (number * rows + jnp.arange(rows)[:, None]) * capacity + rank
    here = hits.any(-1)
    fits = here & (rank < capacity)
    flat = jnp.where(fits, slot, _NOWHERE).reshape(-1)
    empty = jnp.full(count * rows * capacity, _NOWHERE, jnp.int32)
    position = empty.at[flat].set(jnp.arange(sets.size, dtype=jnp.int32), mode="drop")
    return _Slots(
        position.reshape(count, rows * capacity),
        jnp.where(fits, slot, -1).reshape(-1),
        (here & ~fits).reshape(-1),
    )


def _group_rows(
    legal: LegalSets, reduction: Reduction, batch: GroupBatch, block: jax.Array
) -> Rows:
    vocabulary, local = legal.vocabulary, block.shape[1]
    groups = slice(batch.first_group, batch.first_group + len(batch.sets))
    first = reduction.first_row(1, local)
    valid = vocabulary.valid_blocks[1][groups]
    mask = None
    if not valid.all():
        mask = jax.lax.dynamic_slice_in_dim(jnp.asarray(valid), first, local, 1)
    starts = vocabulary.padded_first + np.arange(groups.start, groups.stop) * vocabulary.group_rows
    return Rows(1, block[groups], mask, jnp.asarray(starts)[:, None] + first)


def _losses(
    rows: Rows,
    positions: Positions,
    z_weight: float,
    platform: str,
    reduction: Reduction,
    with_gradients: bool,
) -> tuple[Losses, Any]:
    """Returns the losses of positions over `rows`, and the `head_gradient` of the local rows."""
    logits = jnp.einsum(
        "...nd,...vd->...nv", positions.hidden, rows.matrix, preferred_element_type=jnp.float32
    )
    if rows.valid is not None:
        logits = jnp.where(rows.valid[..., None, :], logits, _MASKED)
    peak = reduction.max_over_rows(rows.block, logits.max(-1))
    peak = jnp.maximum(peak, positions.single_z)
    exponentials = jnp.exp(logits - peak[..., None])
    normalizer = reduction.sum_over_rows(rows.block, exponentials.sum(-1))
    normalizer += jnp.exp(positions.single_z - peak)
    log_z = jnp.log(normalizer) + peak
    at = positions.target - rows.start
    inside = (at >= 0) & (at < logits.shape[-1])
    picked = jnp.take_along_axis(logits, jnp.where(inside, at, 0)[..., None], axis=-1)[..., 0]
    # A masked row can be the target of a position only if it is a single row.
    picked = jnp.where(inside & (picked > _MASKED), picked, 0.0)
    nll = log_z - reduction.sum_over_rows(rows.block, picked) - positions.single_target
    if not with_gradients:
        return Losses(nll, log_z, None), None
    factor = positions.scale(z_weight, log_z) / normalizer
    hit = at[..., None] == jnp.arange(logits.shape[-1])
    if rows.valid is not None:
        hit &= rows.valid[..., None, :]
    d_logits = exponentials * factor[..., None] - jnp.where(hit, positions.weight[..., None], 0.0)
    d_logits = d_logits.astype(positions.hidden.dtype)
    d_hidden = jnp.einsum(
        "...nv,...vd->...nd", d_logits, rows.matrix, preferred_element_type=jnp.float32
    )
    d_hidden = reduction.sum_over_rows(rows.block, d_hidden)
    d_rows = head_gradient(d_logits, positions.hidden, platform)
    return Losses(nll, log_z, d_hidden.astype(positions.hidden.dtype)), d_rows


def _bulk_losses(
    legal: LegalSets,
    z_weight: float,
    chunk: int,
    platform: str,
    with_gradients: bool,
    reduction: Reduction,
    block: jax.Array,
    positions: Positions,
    sets: jax.Array,
    d_first: jax.Array,
) -> tuple[Losses, jax.Array, jax.Array]:
    """Returns the losses of the positions that need the bulk of block 0, packed.

    The results after those of the last such position are not defined.

    Returns:
      the losses; the index of each position in them, if it has one, int32 `[tokens]`; and the sum of
      `d_first` and the gradient of the local rows.
    """
    tokens = len(sets)
    here = _lookup(legal.has_bulk, sets)
    rank, count = jnp.cumsum(here) - 1, here.sum()
    padded = -(-tokens // chunk) * chunk
    order = jnp.full(padded, _NOWHERE, jnp.int32)
    order = order.at[jnp.where(here, rank, _NOWHERE)].set(
        jnp.arange(tokens, dtype=jnp.int32), mode="drop"
    )
    first = reduction.first_row(0, block.shape[1])
    valid = jax.lax.dynamic_slice_in_dim(jnp.asarray(legal.bulk_rows), first, block.shape[1])
    rows = Rows(0, block[0], valid, first)

    def more(carry: Any) -> jax.Array:
        number, chunks, _, _ = carry
        return number < chunks

    def step(carry: Any) -> Any:
        number, chunks, losses, d_first = carry
        index = jax.lax.dynamic_slice_in_dim(order, number * chunk, chunk)
        new, d_rows = _losses(
            rows, positions.at(index), z_weight, platform, reduction, with_gradients
        )
        losses = jax.tree.map(
            lambda all_, part: jax.lax.dynamic_update_slice_in_dim(all_, part, number * chunk, 0),
            losses,
            new,
        )
        if with_gradients:
            d_first = d_first + d_rows[None]
        return number + 1, chunks, losses, d_first

    zeros = jnp.zeros(padded, jnp.float32)
    empty = Losses(zeros, zeros, None)
    if with_gradients:
        empty = Losses(
            zeros, zeros, jnp.zeros((padded, positions.hidden.shape[1]), positions.hidden.dtype)
        )
    # Only collectives over the axes that split the rows are in the loop. The devices on such an axis
    # have the same positions, so they do the same number of iterations.
    chunks = ((count + chunk - 1) // chunk).astype(jnp.int32)
    _, _, losses, d_first = jax.lax.while_loop(more, step, (jnp.int32(0), chunks, empty, d_first))
    return losses, rank, d_first


def _lookup(table: Any, sets: jax.Array) -> jax.Array:
    """Returns the entries of a table by set, False or 0 for `NO_SET`."""
    padded = np.zeros((NO_SET + 1, *table.shape[1:]), table.dtype)
    padded[: len(table)] = table
    return jnp.asarray(padded)[sets]


def _local(rows: np.ndarray, reduction: Reduction, block: jax.Array) -> tuple[Any, Any]:
    """Returns the local indices of rows of block 0, and whether they are on this device."""
    local = rows - reduction.first_row(0, block.shape[1])
    return local, (local >= 0) & (local < block.shape[1])


def _single_rows(legal: LegalSets, reduction: Reduction, block: jax.Array) -> jax.Array:
    """Returns the single rows of the head, `[singles, d]`, on every device."""
    local, here = _local(legal.single_rows, reduction, block)
    rows = block[0].at[jnp.where(here, local, _NOWHERE)].get(mode="fill", fill_value=0)
    return reduction.sum_over_rows(0, rows)
