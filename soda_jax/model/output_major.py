"""Products of decoding on one CPU device, whose weights have one row in memory per output.

One token needs every weight once, so these products should run at the rate of the memory. XLA (jaxlib
0.10.2) does that for one f32 row, and calls a library for the product weights · xᵀ of at least two rows,
if both operands contract their last axis and are stored in this order. All other forms of a narrow
product, one bf16 or int8 row among them, are plain loops, ten times as slow. docs/legal-head.md has the
measurements.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from soda_jax.model.products import copied
from soda_jax.model.quantized import Quantized

# Up to this number of tokens, the smaller operand is on the right.
_FEW = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputMajor:
    """A weight of a layer as a matrix.

    Attributes:
      rows: `[outputs, inputs]`, f32, bf16 or quantized with one scale per output.
      outputs: shape of the outputs, such as (heads, head_dim).
    """

    rows: jax.Array | Quantized
    outputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def output_major(weight: jax.Array | Quantized, inputs: int) -> OutputMajor:
    """Returns a weight `[inputs…, outputs…]` as a matrix; its first `inputs` axes are contracted."""
    values = weight.values if isinstance(weight, Quantized) else weight
    outputs = values.shape[inputs:]
    rows = values.reshape(math.prod(values.shape[:inputs]), -1).T
    if isinstance(weight, Quantized):
        return OutputMajor(Quantized(rows, weight.scale.reshape(-1)), outputs)
    return OutputMajor(rows, outputs)


def multiply(x: jax.Array, rows: jax.Array | Quantized) -> jax.Array:
    """Returns `x` `[tokens, inputs]` · rowsᵀ, f32 `[tokens, outputs]`.

    Args:
      x: activations; they are rounded to the dtype of bf16 rows. For int8 rows, each of a few
        tokens becomes two int8 rows, the second of which has the remainders of the first, so the error of an activation is at most
        1/64,000 of the largest one of its token.
      rows: `[outputs, inputs]`, see `OutputMajor`.
    """
    count = len(x)
    if count > _FEW:  # a prefill, which is limited by arithmetic
        if isinstance(rows, Quantized):
            return _product(x, rows.values.astype(x.dtype)) * rows.scale
        return _product(x.astype(rows.dtype), rows)
    if isinstance(rows, Quantized):
        peak = jnp.max(jnp.abs(x), axis=1, keepdims=True).astype(jnp.float32)
        step = jnp.where(peak > 0, peak, 1.0) / 127.0
        scaled = x / step
        high = jnp.round(scaled)
        low = jnp.round((scaled - high) * 254.0)
        parts = jnp.concatenate([high, low]).astype(jnp.int8)
        product = _contracted(rows.values, parts, jnp.int32).astype(jnp.float32)
        exact = (product[:count] + product[count:] / 254.0) * step * rows.scale
        # NaN has no int8, so it is put into the result.
        return jnp.where(jnp.isfinite(peak), exact, jnp.nan)
    x = x.astype(rows.dtype)
    if count == 1 and rows.dtype != jnp.float32:
        x = jnp.concatenate([x, x])
    return _contracted(rows, x, jnp.float32)[:count]


def _contracted(rows: jax.Array, x: jax.Array, dtype: Any) -> jax.Array:
    """Returns x · rowsᵀ in a form that XLA compiles to a library call."""
    return copied(_product(rows, copied(x), dtype)).T


def _product(left: jax.Array, right: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    last = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(left, right, last, preferred_element_type=dtype)
