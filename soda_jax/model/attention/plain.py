"""Attention in plain array operations: the reference implementation and the default on CPUs."""

import functools

import jax
import jax.numpy as jnp

from soda_jax.model.placement import OneDevice, Placement
from soda_jax.model.products import narrow_einsum, stored, transposed, wide_einsum

_MASKED = -1e30
_PLAIN = OneDevice("any")


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    placement: Placement = _PLAIN,
) -> jax.Array:
    """Returns grouped-query attention.

    Args:
      query: `[batch, queries, heads, head_dim]`.
      key, value: `[batch, keys, kv_heads, head_dim]`; head h attends with kv head h // (heads/kv_heads).
      mask: bool `[batch, queries, keys]`, True where a query may attend to a key.
      placement: sharding of the arrays; by default, products have the form for accelerators.

    Returns:
      `[batch, queries, heads, head_dim]` in the dtype of `query`; the softmax is computed in f32.
    """
    batch, queries, heads, head_dim = query.shape
    groups = key.shape[2]
    shared = heads // groups  # query heads that share a kv head
    # Batch dimensions come first, so that no product needs a transposed copy of the scores.
    q = (query * head_dim**-0.5).reshape(batch, queries, groups, shared, head_dim)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, groups, shared * queries, head_dim)
    k, v = (stored(x.transpose(0, 2, 1, 3), placement) for x in (key, value))
    mixed = _mix(placement, q, k, v, mask)
    mixed = mixed.reshape(batch, groups, shared, queries, head_dim)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(
    placement: Placement, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
) -> jax.Array:
    """Returns softmax(q kᵀ) v, `[batch, groups, shared · queries, head_dim]`.

    The shapes are q `[batch, groups, shared · queries, head_dim]`, k and v `[batch, groups, keys,
    head_dim]` and mask `[batch, queries, keys]`. The custom gradient uses the saved softmax
    weights and not the mask, because masked weights are 0. The sum Σ_k w dw in the softmax
    gradient equals Σ_d out d_out (FlashAttention, arXiv:2205.14135), which needs only `head_dim`
    numbers per query instead of `keys`.
    """
    return _mix_fwd(placement, q, k, v, mask)[0]


def _mix_fwd(placement, q, k, v, mask):
    platform = placement.platform
    weights = masked_softmax(wide_einsum("bgqd,bgkd->bgqk", q, k, platform), mask).astype(v.dtype)
    out = narrow_einsum("bgqk,bgkd->bgqd", weights, v, platform)
    return out, (q, k, v, weights, out)


def _mix_bwd(placement, saved, d_out):
    platform = placement.platform
    q, k, v, weights, out = saved
    d_out = stored(d_out, placement)
    d_weights = wide_einsum("bgqd,bgkd->bgqk", d_out, v, platform)
    inner = wide_einsum("bgqd,bgqd->bgq", out, d_out, platform)
    d_scores = (weights * (d_weights - inner[..., None])).astype(q.dtype)
    d_q = narrow_einsum("bgqk,bgkd->bgqd", d_scores, k, platform)
    d_k = narrow_einsum("bgkq,bgqd->bgkd", transposed(d_scores, placement), q, platform)
    d_v = narrow_einsum("bgkq,bgqd->bgkd", transposed(weights, placement), d_out, platform)
    return d_q, d_k, d_v, None


_mix.defvjp(_mix_fwd, _mix_bwd)


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the softmax over the last axis of f32 `scores` `[batch, groups, shared · queries, keys]`.

    The result is 0 where `mask` `[batch, queries, keys]` is False. Each row of the mask must have
    at least one True; the softmax of a row without one is uniform.
    """
    batch, groups, _, keys = scores.shape
    by_query = scores.reshape(batch, groups, -1, mask.shape[1], keys)
    by_query = jnp.where(mask[:, None, None], by_query, _MASKED)
    exponential = jnp.exp(by_query - by_query.max(-1, keepdims=True))
    return (exponential / exponential.sum(-1, keepdims=True)).reshape(scores.shape)


def packed_mask(segment_ids: jax.Array) -> jax.Array:
    """Returns the causal mask within segments, bool `[batch, sequence, sequence]`.

    Args:
      segment_ids: int `[batch, sequence]`.
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same & jnp.tri(segment_ids.shape[1], dtype=bool)
