"""Attention backends behind one function; none crosses a segment boundary."""

import jax
import jax.numpy as jnp

from soda_jax.errors import UserError


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
    groups = key.shape[2]
    grouped = query.reshape(batch, queries, groups, heads // groups, head_dim)
    scores = jnp.einsum("bqghd,bkgd->bghqk", grouped, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * head_dim**-0.5, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bghqk,bkgd->bqghd", weights, value)
    return mixed.reshape(batch, queries, heads, head_dim)


def packed_mask(segment_ids: jax.Array) -> jax.Array:
    """Causal mask within segments: bool `[batch, sequence, sequence]` from int `[batch, sequence]`."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same & jnp.tri(segment_ids.shape[1], dtype=bool)
