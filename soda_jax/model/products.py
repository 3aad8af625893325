"""Chooses the dtype of activations, and writes matrix products in the form that XLA compiles well.

On TPUs and GPUs, XLA compiles a plain product to the best kernel. On a CPU (XLA of jaxlib 0.10.2), the
form decides: a bf16 product uses the bf16 instructions only if its result is f32, the last axis of the
left operand is contracted, and this operand has the default layout. In any other form, XLA converts the
operands to f32. docs/performance.md has the measurements.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from soda_jax.model.placement import Placement, one_cpu

# The flag in Linux's cpuinfo for products of bf16 vectors with f32 sums. Others, such as AMX and those of
# ARM, were not measured.
_BF16_FLAG = "avx512_bf16"


def compute_dtype(setting: str, platform: str, devices: int = 1) -> str:
    """Returns the dtype of activations, "bfloat16" or "float32", for `model.compute_dtype`.

    Args:
      setting: "bfloat16", "float32", or "auto": bfloat16, but float32 on a CPU without instructions for
        it and on several CPU devices, whose processes may run on different CPUs.
      platform: platform of the devices.
      devices: number of devices.
    """
    if setting != "auto":
        return setting
    narrow = platform != "cpu" or (devices == 1 and cpu_multiplies_bf16())
    return "bfloat16" if narrow else "float32"


@functools.cache
def cpu_multiplies_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Returns whether the flags of this machine's CPU name instructions for bf16 products."""
    try:
        text = Path(cpuinfo).read_text("utf-8", errors="replace")
    except OSError:  # not Linux
        return False
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return _BF16_FLAG in next(lines, "").split()


def matmul(x: jax.Array, weight: jax.Array, placement: Placement) -> jax.Array:
    """Returns `x` `[tokens, inputs]` · `weight` `[inputs, outputs]` in the dtype of `x`.

    On a CPU it has a custom gradient, so it cannot be differentiated in forward mode.
    """
    if placement.platform != "cpu":
        return x @ weight
    return _cpu_matmul(placement, x, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cpu_matmul(placement: Placement, x: jax.Array, weight: jax.Array) -> jax.Array:
    return wide_einsum("ti,io->to", x, weight).astype(x.dtype)


def _cpu_matmul_fwd(placement, x, weight):
    # Not a call of `_cpu_matmul`, whose product a policy of `jax.checkpoint` could not see.
    return wide_einsum("ti,io->to", x, weight).astype(x.dtype), (x, weight)


def _cpu_matmul_bwd(placement, saved, gradient):
    x, weight = saved
    d_x = wide_einsum("to,io->ti", gradient, weight)
    d_weight = wide_einsum("it,to->io", transposed(x, placement), gradient)
    return d_x.astype(x.dtype), d_weight.astype(weight.dtype)


_cpu_matmul.defvjp(_cpu_matmul_fwd, _cpu_matmul_bwd)


def head_gradient_zeros(block: jax.Array, platform: str) -> jax.Array:
    """Returns zeros for the gradient of a block of the head `[groups, rows, d]`, f32.

    On a CPU, the shape is `[groups, d, rows]`, because the small `hidden` is then transposed and not the
    gradient of the logits, see `head_gradient`. `head_gradient_rows` returns it to the shape of the block.
    """
    groups, rows, width = block.shape
    return jnp.zeros(
        (groups, width, rows) if platform == "cpu" else (groups, rows, width), jnp.float32
    )


def head_gradient(d_logits: jax.Array, hidden: jax.Array, platform: str) -> jax.Array:
    """Returns Σ_t d_logits · hidden, f32 `[…, rows, d]`; on a CPU `[…, d, rows]`.

    Args:
      d_logits: gradient of the logits `[…, tokens, rows]`.
      hidden: `[…, tokens, d]`, in the same dtype.
      platform: platform of the device.
    """
    if platform != "cpu":
        return wide_einsum("...tv,...td->...vd", d_logits, hidden, platform)
    return wide_einsum("...dt,...tv->...dv", copied(jnp.swapaxes(hidden, -1, -2)), d_logits)


def head_gradient_rows(gradient: jax.Array, platform: str) -> jax.Array:
    """Returns a gradient of `head_gradient_zeros` as `[groups, rows, d]`."""
    return jnp.swapaxes(gradient, 1, 2) if platform == "cpu" else gradient


def wide_einsum(
    subscripts: str, left: jax.Array, right: jax.Array, platform: str = "cpu"
) -> jax.Array:
    """Returns the f32 einsum of two arrays.

    The barrier after bf16 products on a CPU keeps XLA from moving a transposition of the result to the
    operands: the resulting program raises UNIMPLEMENTED.
    """
    product = jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)
    if platform == "cpu" and left.dtype == jnp.bfloat16:
        product = jax.lax.optimization_barrier(product)
    return product


def narrow_einsum(
    subscripts: str, left: jax.Array, right: jax.Array, platform: str = "cpu"
) -> jax.Array:
    """Returns the einsum of two arrays in the dtype of `right`."""
    if platform != "cpu":
        return jnp.einsum(subscripts, left, right)
    return wide_einsum(subscripts, left, right).astype(right.dtype)


def stored(x: jax.Array, placement: Placement) -> jax.Array:
    """Returns `x`; a bf16 array on one CPU device is stored in the order of its axes.

    Otherwise XLA gives a transposed array a layout that avoids the copy, and the product contracts an axis
    that is not the last in memory. An array that is split over devices cannot be copied in this way and is returned as it is.
    f32 products are about as fast in both forms.
    """
    return copied(x) if one_cpu(placement) and x.dtype == jnp.bfloat16 else x


def transposed(x: jax.Array, placement: Placement) -> jax.Array:
    """Swaps the last two axes of `x` `[…, a, b]`; the result is `stored`."""
    return stored(jnp.swapaxes(x, -1, -2), placement)


def copied(x: jax.Array) -> jax.Array:
    """Returns `x`, stored in the order of its axes."""
    # The barrier is on a flat array, whose layout XLA cannot change.
    return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)
