"""Rotary position embedding with the Llama-3 frequency scaling."""

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.schema import RopeConfig


def frequencies(head_dim: int, rope: RopeConfig) -> np.ndarray:
    """Returns the angular frequency of each rotated pair, f32 `[head_dim / 2]`, in radians per position.

    Llama 3.1: wavelengths above original_max_position / low_freq_factor are stretched by `factor`, those
    below original_max_position / high_freq_factor are unchanged. In between, the frequencies are
    interpolated linearly in original_max_position / wavelength.
    """
    base = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.factor == 1.0:
        return base.astype(np.float32)
    turns = rope.original_max_position * base / (2 * np.pi)
    keep = np.clip(
        (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0
    )
    return (base * keep + base / rope.factor * (1 - keep)).astype(np.float32)


def angles(
    positions: jax.Array, length: int, head_dim: int, rope: RopeConfig
) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine, f32 `[batch, sequence, 1, head_dim / 2]`, of int positions `[batch, sequence]`.

    They are read from a table of `length` rows, because XLA would fuse their computation into every head
    of every layer. A position outside the table gives NaN.
    """
    table = np.arange(length, dtype=np.float32)[:, None, None] * frequencies(head_dim, rope)

    def read(rows: np.ndarray) -> jax.Array:
        return jnp.asarray(rows).at[positions].get(mode="fill", fill_value=jnp.nan)

    return read(np.cos(table)), read(np.sin(table))


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Rotates `x` `[batch, sequence, heads, head_dim]`; dimension i is paired with i + head_dim / 2."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
