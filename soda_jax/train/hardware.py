"""Peak arithmetic rate of the devices, the denominator of the model FLOP utilisation."""

import time

import jax
import jax.numpy as jnp
import numpy as np

# Dense bf16 peaks in FLOP/s of one chip, from the vendors' data sheets.
PEAK_BF16 = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(devices: list[jax.Device]) -> tuple[float, str]:
    """Peak FLOP/s of all `devices` together and where the figure comes from.

    Known accelerators have their data sheet's bf16 figure. For anything else, a CPU above all, the
    rate of a 1,024³ f32 matrix product is measured; simulated CPU devices share the one processor.
    """
    kind = devices[0].device_kind
    known = [name for name in PEAK_BF16 if kind.startswith(name)]
    if known:
        name = max(known, key=len)
        return PEAK_BF16[name] * len(devices), f"{name} bf16 data sheet x {len(devices)}"
    return measure_matmul(), f"measured f32 matrix product on {kind}"


def measure_matmul(size: int = 1024, repeats: int = 7, dtype: str = "float32") -> float:
    """FLOP/s of a `size`³ product of matrices of `dtype` on the default device, the best of `repeats`."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / float(np.min(seconds))
