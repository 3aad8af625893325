"""Rotary position embedding with the Llama-3 frequency scaling."""

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.schema import RopeConfig


def frequencies(head_dim: int, rope: RopeConfig) -> np.ndarray:
    """Returns the angular frequency of each pair in radians per position, f32 `[head_dim / 2]`.

    The scaling is that of Llama 3.1. Wavelengths above original_max_position / low_freq_factor are
    multiplied by `factor`, those below original_max_position / high_freq_factor are unchanged. In
    between, the frequencies are interpolated linearly in original_max_position / wavelength.
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
    """Returns cosine and sine of the rotary angles, f32 `[batch, sequence, 1, head_dim / 2]`.

    They are read from a table of `length` rows, because XLA would otherwise fuse their computation
    into every head of every layer. For a position of `length` or more they are NaN.

    Args:
      positions: int `[batch, sequence]`, not negative.
      length: number of positions in the table.
      head_dim: width of a head.
      rope: RoPE settings.
    """
    table = np.arange(length, dtype=np.float32)[:, None, None] * frequencies(head_dim, rope)

    def read(rows: np.ndarray) -> jax.Array:
        return jnp.asarray(rows).at[positions].get(mode="fill", fill_value=jnp.nan)

    return read(np.cos(table)), read(np.sin(table))


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + head_dim / 2) of `x` `[batch, sequence, heads, head_dim]`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
