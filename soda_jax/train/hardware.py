"""Peak FLOP/s of the devices, the denominator of MFU."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.hardware import chip_of


def peak_flops(devices: list[jax.Device], dtype: str = "float32") -> tuple[float, str]:
    """Returns the total peak FLOP/s of `devices` and the source of the figure.

    For known accelerators, the figure per device is the bf16 rate of the data sheet divided by the
    number of devices that JAX shows per chip. For other devices, mainly CPUs, the total is the
    measured rate of one 1,024³ matrix product, because simulated CPU devices share one processor.

    Args:
      devices: the devices.
      dtype: dtype of the operands of the measured product.
    """
    kind = devices[0].device_kind
    chip = chip_of(kind)
    if chip is not None:
        part = f"1/{chip.devices} of " if chip.devices > 1 else ""
        peak = chip.flops / chip.devices * len(devices)
        return peak, f"{part}{chip.name} bf16 data sheet x {len(devices)}"
    return measure_matmul(dtype=dtype), f"measured {dtype} matrix product on {kind}"


def measure_matmul(size: int = 1024, repeats: int = 7, dtype: str = "float32") -> float:
    """Returns the best FLOP/s of `repeats` matrix products of `size`³ on the default device.

    On a CPU, the result of the products is f32: with a bf16 result, XLA converts the operands to f32.
    """
    matrix = jnp.ones((size, size), dtype)
    result = jnp.float32 if jax.default_backend() == "cpu" else None
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=result))
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / float(np.min(seconds))
