"""Peak rates, memory and slice sizes of accelerators, with the source of each number.

`soda plan` and the model FLOP utilization (MFU) use this table. Numbers are per chip. JAX
exposes a TPU v2, v3 or TPU7x chip as two devices, each with half of the rates and of the memory.
"""

import dataclasses
import math

GB, GIB = 1e9, 2.0**30
GBIT = GB / 8

# JAX allocates this fraction of a GPU's memory; the environment variable XLA_PYTHON_CLIENT_MEM_FRACTION
# changes it (docs.jax.dev, "GPU memory allocation").
GPU_MEMORY_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      name: name in `soda plan --topology=NAME:SHAPE`.
      kinds: prefixes of `jax.Device.device_kind`.
      flops: dense bf16 FLOP/s.
      memory: bytes of memory.
      usable: bytes of one device that a program may use. For TPUs, the limit that the compiler
        reports for a program that is too large. For GPUs, the total that the driver reports, of
        which JAX uses a fraction.
      bandwidth: memory bandwidth in bytes/s.
      link: bytes/s that the chip sends within its slice or node, over all links, one way.
      network: bytes/s that the chip sends over the data-center network.
      host_link: bytes/s between device memory and host memory, one way.
      host: chips of one host along each dimension.
      largest: shape of the largest slice; None for GPUs.
      devices: number of JAX devices per chip.
      config: chip configuration with which the TPU compiler creates `devices` devices per chip; ""
        for the default.
      kernels: whether the platform's attention kernel compiles for this chip.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: float
    usable: float
    bandwidth: float
    link: float
    network: float
    host_link: float
    host: tuple[int, ...]
    largest: tuple[int, ...] | None = None
    devices: int = 1
    config: str = ""
    kernels: bool = True

    @property
    def is_tpu(self) -> bool:
        """Whether the chip is a TPU."""
        return self.largest is not None

    @property
    def largest_chips(self) -> int:
        """Number of chips in the largest slice; 0 for GPUs."""
        return math.prod(self.largest) if self.largest else 0


# TPU: flops, memory, bandwidth, link (half of the bidirectional bandwidth) and the largest slice are from
# cloud.google.com/tpu/docs (v2, v3, v4, v5p, v5e, v6e, tpu7x), "key specifications" and "configurations". The
# largest v5p slice is the largest for one job, not the whole pod (8,960 chips). v2 and v3 have four
# links per chip, of 496 and 656 Gbit/s each way (Jouppi et al., CACM 63(7), 2020, table 3).
# usable: "available HBM" in the error message of libtpu 0.0.42.1 for a program of 300 GiB.
# network: from the docs, the bandwidth of a pod divided by its chips (v5e, v6e) or that of a chip
# (v5p, tpu7x). v4 has the value of v5p. No figure is published for v2 and v3; 25 Gbit/s is assumed.
# kernels: Mosaic, the compiler of the splash kernel, has no bf16 matmul for v2 and v3.
# host_link: jax-ml.github.io/scaling-book/tpus has 16 GB/s each way for v4 and 32 for v6e. No figure is
# published for the other TPUs; 15 GB/s, and 32 for tpu7x, is assumed.
_TPUS = (
    Chip("v2", ("TPU v2",), 46e12, 16 * GIB, 7.48 * GIB, 700 * GB, 4 * 496 * GBIT,
         25 * GBIT, 15 * GB, (2, 2), (16, 16), 2, kernels=False),
    Chip("v3", ("TPU v3",), 123e12, 32 * GIB, 15.48 * GIB, 900 * GB, 4 * 656 * GBIT,
         25 * GBIT, 15 * GB, (2, 2), (32, 32), 2, kernels=False),
    # Without "megacore", the compiler creates two devices per v4 chip; JAX on a TPU has one.
    Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 30.75 * GIB, 1200 * GB, 300 * GB,
         50 * GBIT, 16 * GB, (2, 2, 1), (16, 16, 16), 1, "megacore"),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 15.75 * GIB, 819 * GB, 200 * GB,
         25 * GBIT, 15 * GB, (2, 2), (16, 16)),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 95.74 * GIB, 2765 * GB, 600 * GB,
         50 * GBIT, 15 * GB, (2, 2, 1), (16, 16, 24)),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 31.25 * GIB, 1638 * GB, 400 * GB,
         100 * GBIT, 32 * GB, (2, 2), (16, 16)),
    Chip("tpu7x", ("TPU7x", "TPU v7x"), 2307e12, 192 * GIB, 94.75 * GIB, 7380 * GB, 600 * GB,
         100 * GBIT, 32 * GB, (2, 2, 1), (16, 24, 24), 2),
)  # fmt: skip

# GPU: flops (half of the figure "with sparsity"), memory, bandwidth, link (NVLink one way; PCIe cards: PCIe)
# and host_link (PCIe one way) are from NVIDIA's data sheets of A100, H100, H200 and HGX B200. network: one
# port per GPU, of 200 Gbit/s in DGX A100 and 400 later. usable: the total that CUDA reports.
_GPUS = (
    Chip("a100", ("NVIDIA A100",), 312e12, 40 * GB, 39.4 * GIB, 1555 * GB, 300 * GB,
         200 * GBIT, 32 * GB, (8,)),
    Chip("a100-80gb", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB", "NVIDIA A100-SXM-80GB"),
         312e12, 80 * GB, 79.1 * GIB, 2039 * GB, 300 * GB, 200 * GBIT, 32 * GB, (8,)),
    Chip("h100", ("NVIDIA H100",), 989e12, 80 * GB, 79.1 * GIB, 3350 * GB, 450 * GB,
         400 * GBIT, 64 * GB, (8,)),
    Chip("h100-pcie", ("NVIDIA H100 PCIe",), 756e12, 80 * GB, 79.1 * GIB, 2000 * GB, 64 * GB,
         400 * GBIT, 64 * GB, (8,)),
    Chip("h100-nvl", ("NVIDIA H100 NVL",), 835e12, 94 * GB, 93.1 * GIB, 3900 * GB, 64 * GB,
         400 * GBIT, 64 * GB, (8,)),
    Chip("h200", ("NVIDIA H200",), 989e12, 141 * GB, 139.8 * GIB, 4800 * GB, 450 * GB,
         400 * GBIT, 64 * GB, (8,)),
    Chip("h200-nvl", ("NVIDIA H200 NVL",), 835e12, 141 * GB, 139.8 * GIB, 4800 * GB, 64 * GB,
         400 * GBIT, 64 * GB, (8,)),
    Chip("b200", ("NVIDIA B200",), 2250e12, 180 * GB, 178.3 * GIB, 8000 * GB, 900 * GB,
         400 * GBIT, 64 * GB, (8,)),
)  # fmt: skip

CHIPS = {chip.name: chip for chip in (*_TPUS, *_GPUS)}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a `jax.Device.device_kind`; None if the kind is unknown.

    The longest matching prefix is used, so "TPU v5 lite" is a v5e and "TPU v5" is a v5p.
    """
    kinds = {kind: chip for chip in CHIPS.values() for kind in chip.kinds}
    known = [kind for kind in kinds if device_kind.startswith(kind)]
    return kinds[max(known, key=len)] if known else None
