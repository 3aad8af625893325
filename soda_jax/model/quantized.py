"""Stores weights as int8 with one scale per output channel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Quantized(NamedTuple):
    """A quantized weight, values · scale.

    Attributes:
      values: int8 `[…]`.
      scale: f32, of the shape of `values` without the contracted axes.
    """

    values: jax.Array
    scale: jax.Array


def quantize(weight: jax.Array, contracted: tuple[int, ...]) -> Quantized:
    """Quantizes a weight to the nearest of 255 multiples of its largest magnitude / 127.

    Args:
      weight: f32 `[…]`.
      contracted: the axes that a product contracts; all other axes are output channels.
    """
    peak = jnp.max(jnp.abs(weight), axis=contracted, keepdims=True)
    scale = jnp.where(peak > 0, peak, 1.0) / 127.0
    values = jnp.round(weight / scale).astype(jnp.int8)
    return Quantized(values, scale.squeeze(contracted))


def dequantize(weight: Quantized, contracted: tuple[int, ...]) -> jax.Array:
    """Returns values · scale, f32; `contracted` are the axes without a scale."""
    return weight.values * jnp.expand_dims(weight.scale, contracted)
