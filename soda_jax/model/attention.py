"""Attention backends behind one function; none crosses a segment boundary."""

import jax
import jax.numpy as jnp

from soda_jax.errors import UserError

_MASKED = -1e30


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    backend: str = "xla",
) -> jax.Array:
    """Grouped-query attention.

    Args:
      query: `[batch, queries, heads, head_dim]`.
      key, value: `[batch, keys, kv_heads, head_dim]`; head h attends with kv head h // (heads/kv_heads).
      mask: bool `[batch, queries, keys]`, True where a query may see a key.
      backend: "xla", the plain reference.

    Returns:
      `[batch, queries, heads, head_dim]` in the type of `query`; softmax runs in f32.

    Raises:
      UserError: for an unknown backend.
    """
    if backend != "xla":
        raise UserError(f"model.attention = {backend!r} is unknown: xla")
    batch, queries, heads, head_dim = query.shape
    keys, groups = key.shape[1:3]
    shared = heads // groups  # query heads that share a kv head
    # Batch dimensions first, so that no product needs a transposed copy of the scores.
    q = (query * head_dim**-0.5).reshape(batch, queries, groups, shared, head_dim)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, groups, shared * queries, head_dim)
    k, v = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bgqd,bgkd->bgqk", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, groups, shared, queries, keys)
    weights = masked_softmax(scores, mask[:, None, None]).astype(value.dtype)
    weights = weights.reshape(batch, groups, shared * queries, keys)
    mixed = jnp.einsum("bgqk,bgkd->bgqd", weights, v)
    mixed = mixed.reshape(batch, groups, shared, queries, head_dim)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim)


@jax.custom_vjp
def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last axis of f32 `scores`, 0 where `mask` (broadcast) is False.

    Its own gradient needs the weights alone: a masked weight is 0, so the mask is not applied again,
    and one pass over the scores replaces the three that differentiation writes.
    """
    scores = jnp.where(mask, scores, _MASKED)
    exponential = jnp.exp(scores - scores.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def _masked_softmax_fwd(scores, mask):
    weights = masked_softmax(scores, mask)
    return weights, weights


def _masked_softmax_bwd(weights, cotangent):
    inner = jnp.sum(weights * cotangent, axis=-1, keepdims=True)
    return weights * (cotangent - inner), None


masked_softmax.defvjp(_masked_softmax_fwd, _masked_softmax_bwd)


def packed_mask(segment_ids: jax.Array) -> jax.Array:
    """Causal mask within segments: bool `[batch, sequence, sequence]` from int `[batch, sequence]`."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same & jnp.tri(segment_ids.shape[1], dtype=bool)
