"""The machines that a plan knows, and their names on the command line."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from soda_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, from its data sheet.

    Attributes:
      name: as in a topology.
      flops: dense bf16 FLOP/s.
      memory: bytes.
      bandwidth: of the memory, bytes/s.
      link: bytes/s that the chip sends to the others of its slice or node, all links together, one way.
      network: bytes/s that it sends beyond: the data centre's network.
      host_link: bytes/s between its memory and the host's, one way.
      dims: dimensions of the torus; 0 for GPUs.
      host: chips that one host holds, the shape of a TPU host.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    host_link: float
    dims: int
    host: tuple[int, ...]


GB, GIB = 1e9, 2.0**30

# TPU: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e), "key specifications"; the link is half of the
# bidirectional bandwidth, the network is that of a pod over its chips. GPU: the SXM data sheets of NVIDIA,
# NVLink one way, and one 400 Gbit/s port a GPU between nodes.
# Link to the host, TPU: jax-ml.github.io/scaling-book/tpus, 16 GB/s each way for v4, typically 15 a chip,
# 32 for v6e; for v5e and v5p no data sheet names it, so 15 is an assumption. GPU: PCIe 5, half of the
# data sheets' 128 GB/s.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * GIB, 1200 * GB, 300 * GB, 50 / 8 * GB, 16 * GB, 3, (2, 2, 1)),
        Chip("v5e", 197e12, 16 * GIB, 819 * GB, 200 * GB, 25 / 8 * GB, 15 * GB, 2, (2, 4)),
        Chip("v5p", 459e12, 95 * GIB, 2765 * GB, 600 * GB, 50 / 8 * GB, 15 * GB, 3, (2, 2, 1)),
        Chip("v6e", 918e12, 32 * GIB, 1600 * GB, 400 * GB, 100 / 8 * GB, 32 * GB, 2, (2, 4)),
        Chip("h100", 989e12, 80 * GB, 3350 * GB, 450 * GB, 50 * GB, 64 * GB, 0, (8,)),
        Chip("h200", 989e12, 141 * GB, 4800 * GB, 450 * GB, 50 * GB, 64 * GB, 0, (8,)),
    )
}
EXAMPLES = "v4:2x2x4, v5e:4x8, v5p:4x4x8, v6e:8x8, h100:8, h200:64"


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many chips of a kind, connected in a shape.

    Attributes:
      chip: the kind.
      shape: of a slice, chips along each dimension; `(n,)` for GPUs.
      slices: how many slices, connected by the data centre's network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """All chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def domains(self) -> int:
        """What `mesh.dcn=-1` counts: slices of TPUs, nodes of GPUs (up to eight, one NVLink domain)."""
        nodes = 1 if self.is_tpu else -(-self.shape[0] // self.chip.host[0])
        return nodes * self.slices

    @property
    def is_tpu(self) -> bool:
        """Whether the TPU compiler can compile for it."""
        return self.chip.dims > 0

    @property
    def platform(self) -> str:
        """jax's name for it."""
        return "tpu" if self.is_tpu else "gpu"

    def __str__(self) -> str:
        name = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return name if self.slices == 1 else f"{name}, {self.slices} slices"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """The topology `CHIP:SHAPE`, such as v5p:4x4x8 or h100:8.

    Raises:
      UserError: for a chip that is unknown, a shape that is not one of it, nodes of GPUs that are not
        whole, or slices below 1.
    """
    name, _, size = text.lower().partition(":")
    if name not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise UserError(
            f"--topology={text} is unknown: CHIP:SHAPE with a chip of {', '.join(CHIPS)}, as in {EXAMPLES}"
        )
    chip, shape = CHIPS[name], tuple(int(n) for n in size.split("x"))
    if len(shape) != max(1, chip.dims):
        like = {
            0: "a number of GPUs, as in h100:8",
            2: "AxB, as in v5e:4x8",
            3: "AxBxC, as in v5p:4x4x8",
        }
        raise UserError(f"--topology={text}: the shape of {name} is {like[chip.dims]}")
    if not chip.dims and shape[0] > chip.host[0] and shape[0] % chip.host[0]:
        raise UserError(
            f"--topology={text}: GPUs come in nodes of {chip.host[0]}: up to {chip.host[0]}, or a multiple"
        )
    if slices < 1:
        raise UserError(f"--slices={slices} must be at least 1")
    return Topology(chip, shape, slices)


def tpu_devices(topology: Topology) -> Sequence[Any]:
    """Devices of a TPU topology that is not here, for compiling.

    Raises:
      UserError: if libtpu is not installed or does not know the shape.
    """
    try:
        import libtpu  # noqa: F401, only its presence is asked for
    except ImportError:
        raise UserError(
            "compiling for a TPU needs its compiler: pip install 'soda-jax[tpu]' (no TPU is needed), "
            "or add --estimate"
        ) from None
    from jax.experimental import topologies

    chip = topology.chip
    bounds = chip.host
    if all(size <= part for size, part in zip(topology.shape, bounds, strict=True)):
        bounds = topology.shape  # a host or a part of one
    name = f"{chip.name}:{'x'.join(map(str, topology.shape))}"
    try:
        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=name,
            chips_per_host_bounds=(*bounds, 1, 1, 1)[:3],
            num_slices=topology.slices,
        )
    except Exception as error:  # of the compiler's own kind, which the public API does not name
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--topology={name}: the TPU compiler does not take it ({reason})"
        ) from None
    return description.devices
