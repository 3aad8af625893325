"""Peak FLOP/s of the devices, the denominator of MFU."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.hardware import chip_of


def peak_flops(devices: list[jax.Device]) -> tuple[float, str]:
    """Returns the total peak FLOP/s of `devices` and the source of the figure.

    For known accelerators, the figure per device is the bf16 rate of the data sheet divided by the
    number of devices that JAX shows per chip. For other devices, mainly CPUs, the total is the
    measured rate of one 1,024³ f32 matrix product, because simulated CPU devices share one
    processor.
    """
    kind = devices[0].device_kind
    chip = chip_of(kind)
    if chip is not None:
        part = f"1/{chip.devices} of " if chip.devices > 1 else ""
        peak = chip.flops / chip.devices * len(devices)
        return peak, f"{part}{chip.name} bf16 data sheet x {len(devices)}"
    return measure_matmul(), f"measured f32 matrix product on {kind}"


def measure_matmul(size: int = 1024, repeats: int = 7, dtype: str = "float32") -> float:
    """Returns the best FLOP/s of `repeats` matrix products of `size`³ on the default device."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / float(np.min(seconds))
