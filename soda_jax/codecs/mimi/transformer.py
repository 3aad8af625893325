"""Defines the causal sliding-window transformer between the convolutions and the quantizer.

The layers use pre-norm LayerNorm, rotary position embeddings (RoPE), GELU, and LayerScale on each
residual branch (arXiv 2103.17239). Past keys and values are cached.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from soda_jax.codecs.mimi.config import MimiConfig
from soda_jax.codecs.mimi.layers import matmul, weight


class Memory(NamedTuple):
    """Keys (after RoPE) and values of the last `sliding_window − 1` positions, in order.

    Attributes:
      keys: `[layers, batch, window − 1, heads, head_dim]`.
      values: the same shape.
    """

    keys: jax.Array
    values: jax.Array


class Norm(nnx.Module):
    """LayerNorm over the last axis, computed in f32."""

    def __init__(self, size: int, eps: float):
        self.eps = eps
        self.weight = weight((size,), mean=1.0)
        self.bias = weight((size,))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        centered = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centered).mean(-1, keepdims=True)
        normed = centered * jax.lax.rsqrt(variance + self.eps)
        return (normed * self.weight[...] + self.bias[...]).astype(x.dtype)


class Layer(nnx.Module):
    """A transformer layer; the weights are `[in, out]`."""

    def __init__(self, config: MimiConfig):
        width, inside = config.hidden_size, config.num_attention_heads * config.head_dim
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.attention_norm = Norm(width, config.norm_eps)
        self.query = weight((width, inside), 2 * width)
        self.key = weight((width, inside), 2 * width)
        self.value = weight((width, inside), 2 * width)
        self.output = weight((inside, width), 2 * inside)
        self.attention_scale = weight((width,), mean=0.01)
        self.mlp_norm = Norm(width, config.norm_eps)
        self.up = weight((width, config.intermediate_size), 2 * width)
        self.down = weight((config.intermediate_size, width), 2 * config.intermediate_size)
        self.mlp_scale = weight((width,), mean=0.01)

    def __call__(
        self,
        x: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        keys: jax.Array,
        values: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Applies the layer to new positions.

        Args:
          x: `[batch, time, width]`.
          angles: cosine and sine, f32 `[time, 1, head_dim]`.
          mask: bool `[time, window − 1 + time]`, the positions that each position attends to.
          keys: past keys, `[batch, window − 1, heads, head_dim]`.
          values: past values, the same shape.

        Returns:
          (x, keys, values); keys and values are those of the last window − 1 positions.
        """
        shape = (*x.shape[:2], self.heads, self.head_dim)
        normed = self.attention_norm(x)
        query = rotate(matmul(normed, self._weight(self.query, x)).reshape(shape), angles)
        key = rotate(matmul(normed, self._weight(self.key, x)).reshape(shape), angles)
        value = matmul(normed, self._weight(self.value, x)).reshape(shape)
        all_keys = jnp.concatenate([keys, key], axis=1)
        all_values = jnp.concatenate([values, value], axis=1)
        attended = attend(query, all_keys, all_values, mask).reshape(*x.shape[:2], -1)
        branch = matmul(attended, self._weight(self.output, x))
        x = x + self._weight(self.attention_scale, x) * branch
        inner = jax.nn.gelu(matmul(self.mlp_norm(x), self._weight(self.up, x)), approximate=False)
        x = x + self._weight(self.mlp_scale, x) * matmul(inner, self._weight(self.down, x))
        time = x.shape[1]
        return x, all_keys[:, time:], all_values[:, time:]

    @staticmethod
    def _weight(param: nnx.Param, x: jax.Array) -> jax.Array:
        return param[...].astype(x.dtype)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies RoPE to `[batch, time, heads, head_dim]`, pairing the two halves of `head_dim`."""
    cosine, sine = (angle.astype(x.dtype) for angle in angles)
    first, second = jnp.split(x, 2, axis=-1)
    return x * cosine + jnp.concatenate([-second, first], axis=-1) * sine


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns softmax(q·k / √d) v over the keys that `mask` allows, with the softmax in f32.

    Args:
      query: `[batch, time, heads, head_dim]`.
      keys: `[batch, keys, heads, head_dim]`.
      values: the same shape.
      mask: bool `[time, keys]`.
    """
    highest = jax.lax.Precision.HIGHEST if query.dtype == jnp.float32 else None
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys, precision=highest).astype(jnp.float32)
    scores = jnp.where(mask, scores / math.sqrt(query.shape[-1]), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, values, precision=highest)


class Transformer(nnx.Module):
    """A stack of layers that share the RoPE angles and the mask."""

    def __init__(self, config: MimiConfig):
        self.config = config
        self.layers = nnx.List([Layer(config) for _ in range(config.num_hidden_layers)])

    def start(self, batch: int, dtype: jnp.dtype) -> Memory:
        """Returns the initial state: zeros, which the mask excludes from attention."""
        c = self.config
        shape = (len(self.layers), batch, c.sliding_window - 1, c.num_attention_heads, c.head_dim)
        return Memory(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def __call__(
        self, x: jax.Array, memory: Memory, position: jax.Array
    ) -> tuple[jax.Array, Memory]:
        """Applies all layers to `[batch, time, width]`, which starts at position `position`."""
        c, time = self.config, x.shape[1]
        query_at = position + jnp.arange(time)
        key_at = position + jnp.arange(1 - c.sliding_window, time)
        distance = query_at[:, None] - key_at
        mask = (key_at >= 0) & (distance >= 0) & (distance < c.sliding_window)
        exponents = jnp.arange(0, c.head_dim, 2, dtype=jnp.float32) / c.head_dim
        turns = query_at.astype(jnp.float32)[:, None] * (1.0 / c.rope_theta**exponents)
        turns = jnp.concatenate([turns, turns], axis=-1)[:, None]
        angles = (jnp.cos(turns), jnp.sin(turns))
        keys, values = [], []
        for number, layer in enumerate(self.layers):
            x, new_keys, new_values = layer(
                x, angles, mask, memory.keys[number], memory.values[number]
            )
            keys.append(new_keys)
            values.append(new_values)
        return x, Memory(jnp.stack(keys), jnp.stack(values))
