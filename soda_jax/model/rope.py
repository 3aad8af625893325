"""Rotary position embedding with the Llama-3 frequency scaling."""

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.model.config import RopeConfig


def frequencies(head_dim: int, rope: RopeConfig) -> np.ndarray:
    """Angular frequency of each rotated pair, f32 `[head_dim / 2]`, in radians a position.

    Llama 3.1: wavelengths beyond original_length / low are stretched by `factor`, those below
    original_length / high stay, those between are blended linearly in original_length / wavelength.
    """
    base = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.factor == 1.0:
        return base.astype(np.float32)
    turns = rope.original_length * base / (2 * np.pi)
    keep = np.clip((turns - rope.low) / (rope.high - rope.low), 0.0, 1.0)
    return (base * keep + base / rope.factor * (1 - keep)).astype(np.float32)


def angles(
    positions: jax.Array, length: int, head_dim: int, rope: RopeConfig
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, f32 `[batch, sequence, 1, head_dim / 2]`, of int positions `[batch, sequence]`.

    They are read from a table of `length` rows: computed from the positions, XLA would fuse them into
    every head of every layer and compute them there anew. A position beyond the table gives NaN.
    """
    table = np.arange(length, dtype=np.float32)[:, None, None] * frequencies(head_dim, rope)

    def read(rows: np.ndarray) -> jax.Array:
        return jnp.asarray(rows).at[positions].get(mode="fill", fill_value=jnp.nan)

    return read(np.cos(table)), read(np.sin(table))


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Rotates `x` `[batch, sequence, heads, head_dim]`: dimension i pairs with i + head_dim / 2."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
