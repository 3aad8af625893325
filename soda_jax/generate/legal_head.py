"""Samples the next token of every row of a batch: from its legal set, or from all ids (`draw_any`).

The rows of the head that are multiplied depend on the states of the rows of the batch. If all rows that
are in audio are at the same codebook, only the ids of that codebook are multiplied. The text block is
multiplied only in steps in which a row is in text.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.generate.sampling import RowSampling, draw
from soda_jax.model.config import VocabularyBlocks
from soda_jax.model.decoding import Weights, take_rows
from soda_jax.model.legal import LegalSets
from soda_jax.model.output_major import multiply
from soda_jax.model.placement import Placement, one_cpu
from soda_jax.model.quantized import Quantized


def draw_legal(
    legal: LegalSets,
    weights: Weights,
    keys: jax.Array,
    hidden: jax.Array,
    sets: jax.Array,
    active: jax.Array,
    only: jax.Array,
    sampling: RowSampling,
    placement: Placement,
) -> tuple[jax.Array, jax.Array]:
    """Samples one token per row.

    Args:
      legal: the legal sets.
      weights: weights with a `head`, see `model.decoding.decoding_weights`.
      keys: PRNG keys `[batch]`.
      hidden: `[batch, d]`.
      sets: legal set of each row, int32 `[batch]`.
      active: bool `[batch]`; the results of other rows are undefined, and their sets are not computed.
      only: id of a single row (such as a marker) to which the set is restricted, or −1, int32 `[batch]`.
      sampling: sampling settings.
      placement: the devices of `weights`.

    Returns:
      ids, int32 `[batch]`, and their f32 log-probabilities at temperature 1, normalized over the legal set.
    """
    group = jnp.asarray(legal.group)[sets]
    audio = active & (group >= 0)
    bulk = active & jnp.asarray(legal.has_bulk)[sets] & (only < 0)
    first_group = group[jnp.argmax(audio)]
    lockstep = (~audio | (group == first_group)).all()
    vocabulary = legal.vocabulary
    product = functools.partial(_product, placement, hidden)
    first, *groups = weights["head"]
    singles = jnp.asarray(legal.single_rows)
    permitted = jnp.asarray(legal.has_single)[sets]
    permitted &= (only < 0)[:, None] | (singles == only[:, None])
    single_logits = product(take_rows(_flat(first), singles, hidden.dtype))

    def from_singles_and_group(group_logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The ids of the singles are lower than those of all groups, so ties keep the lower ids.
        logits = jnp.concatenate([single_logits, group_logits], axis=1)
        sizes = jnp.asarray(np.array((*vocabulary.groups, 0), np.int32))[group]
        inside = jnp.arange(group_logits.shape[1]) < jnp.where(only < 0, sizes, 0)[:, None]
        index, score = draw(keys, logits, _some(permitted, inside), sampling)
        count = len(legal.single_rows)
        starts = np.cumsum((vocabulary.first_rows, *vocabulary.groups))[:-1]
        ids = index - count + (jnp.asarray(starts, jnp.int32)[group] if groups else 0)
        single = singles[jnp.minimum(index, count - 1)] if count else 0
        return jnp.where(index < count, single, ids).astype(jnp.int32), score

    def from_bulk() -> tuple[jax.Array, jax.Array]:
        logits = product(_flat(first))
        mask = np.zeros((len(legal.group), vocabulary.padded_first), dtype=bool)
        mask[:, legal.bulk_rows] = legal.has_bulk[:, None]
        mask[:, legal.single_rows] = legal.has_single
        allowed = jnp.asarray(mask)[sets]
        allowed &= (only < 0)[:, None] | (jnp.arange(mask.shape[1]) == only[:, None])
        return draw(keys, logits, _some(allowed), sampling)

    def no_group() -> tuple[jax.Array, jax.Array]:
        return from_singles_and_group(jnp.zeros((len(sets), 0), jnp.float32))

    def one_group() -> tuple[jax.Array, jax.Array]:
        return from_singles_and_group(product(_select(groups[0], first_group)))

    def all_groups() -> tuple[jax.Array, jax.Array]:
        size = vocabulary.group_rows
        logits = product(_flat(groups[0])).reshape(len(sets), -1, size)
        index = jnp.maximum(group, 0)[:, None, None]
        return from_singles_and_group(jnp.take_along_axis(logits, index, axis=1)[:, 0])

    branches = [no_group, one_group, all_groups] if groups else [no_group]
    which = jnp.where(audio.any(), jnp.where(lockstep, 1, 2), 0) if groups else jnp.int32(0)
    ids, scores = jax.lax.switch(which, branches)
    text_ids, text_scores = jax.lax.cond(
        bulk.any(), from_bulk, lambda: (jnp.zeros_like(ids), jnp.zeros_like(scores))
    )
    return jnp.where(bulk, text_ids, ids), jnp.where(bulk, text_scores, scores)


def draw_any(
    vocabulary: VocabularyBlocks,
    weights: Weights,
    keys: jax.Array,
    hidden: jax.Array,
    sampling: RowSampling,
    placement: Placement,
) -> tuple[jax.Array, jax.Array]:
    """Samples one token per row from all ids, without the grammar.

    Args:
      vocabulary: blocks of rows of the head.
      weights, keys, hidden, sampling, placement: as for `draw_legal`.

    Returns:
      ids, int32 `[batch]`, and their f32 log-probabilities at temperature 1, normalized over all ids.
    """
    blocks = (_product(placement, hidden, _flat(block)) for block in weights["head"])
    logits = jnp.concatenate(list(blocks), axis=1)
    valid = jnp.broadcast_to(jnp.asarray(vocabulary.valid_rows), logits.shape)
    rows, scores = draw(keys, logits, valid, sampling)
    ids = np.zeros(vocabulary.rows, np.int32)
    ids[vocabulary.row_of_id] = np.arange(vocabulary.size)
    return jnp.asarray(ids)[rows], scores


def _some(*allowed: jax.Array) -> jax.Array:
    """Joins masks; a row without any True, whose sample is not used, gets all of them."""
    joined = jnp.concatenate(allowed, axis=1)
    return joined | ~joined.any(axis=1, keepdims=True)


def _product(placement: Placement, hidden: jax.Array, rows: Any) -> jax.Array:
    """Returns hidden · rowsᵀ, f32 `[batch, rows]`."""
    if one_cpu(placement):
        return multiply(hidden, rows)
    if isinstance(rows, Quantized):
        return _product(placement, hidden, rows.values.astype(hidden.dtype)) * rows.scale
    return jnp.einsum("bd,vd->bv", hidden, rows, preferred_element_type=jnp.float32)


def _flat(block: Any) -> Any:
    """Returns a block `[groups, rows, d]` as `[groups · rows, d]`."""
    if isinstance(block, Quantized):
        return Quantized(_flat(block.values), block.scale.reshape(-1))
    return block.reshape(-1, block.shape[-1])


def _select(block: Any, group: jax.Array) -> Any:
    """Returns the rows of one group of a block."""
    return jax.tree.map(
        lambda array: jax.lax.dynamic_index_in_dim(array, group, 0, keepdims=False), block
    )
