"""Parses the topologies of `soda plan`, and creates the abstract TPU devices to compile for."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from soda_jax.errors import UserError
from soda_jax.hardware import CHIPS, GPU_MEMORY_FRACTION, Chip

EXAMPLES = "v4:2x2x4, v5e:4x8, v5p:4x4x8, v6e:8x8, tpu7x:2x2x1, h100:8"
CUBE = 4  # large slices of v4, v5p and tpu7x consist of cubes of 4 × 4 × 4 chips


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind, and how they are connected.

    Attributes:
      chip: the kind of chip.
      shape: chips along each dimension of a slice; `(n,)` for GPUs.
      slices: number of slices, which are connected by the data-center network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Number of JAX devices, which is the size of the mesh."""
        return self.chips * self.chip.devices

    @property
    def domains(self) -> int:
        """Size of the dcn axis for `mesh.dcn=-1`: the number of TPU slices, or of GPU nodes."""
        nodes = 1 if self.is_tpu else -(-self.shape[0] // self.chip.host[0])
        return nodes * self.slices

    @property
    def is_tpu(self) -> bool:
        """Whether the chips are TPUs."""
        return self.chip.is_tpu

    @property
    def platform(self) -> str:
        """The JAX platform."""
        return "tpu" if self.is_tpu else "gpu"

    @property
    def memory(self) -> float:
        """Bytes of device memory that the training step may use.

        Raises:
          UserError: if XLA_PYTHON_CLIENT_MEM_FRACTION, which is used for GPUs, is not in (0, 1].
        """
        return self.chip.usable * (1.0 if self.is_tpu else _gpu_fraction())

    @property
    def size(self) -> str:
        """Number of chips as text, with the number of devices if it differs."""
        chips = f"{self.chips} chip{'s' * (self.chips > 1)}"
        return chips if self.devices == self.chips else f"{chips} ({self.devices} devices)"

    def __str__(self) -> str:
        name = f"{self.chip.name}:{_shape(self.shape)}"
        return name if self.slices == 1 else f"{name}, {self.slices} slices"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Parses the topology `CHIP:SHAPE`, such as v5p:4x4x8 or h100:8.

    Raises:
      UserError: if the chip is unknown, no slice has this shape, the GPUs do not fill whole nodes,
        or `slices` is below 1.
    """
    name, _, size = text.lower().partition(":")
    if name not in CHIPS or not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", size):
        raise UserError(
            f"--topology={text} is unknown: use CHIP:SHAPE with CHIP one of "
            f"{', '.join(CHIPS)}, as in {EXAMPLES}"
        )
    chip, shape = CHIPS[name], tuple(int(n) for n in size.split("x"))
    if len(shape) != len(chip.host):
        like = {
            1: f"a number of GPUs, as in {name}:8",
            2: f"AxB, as in {name}:2x2",
            3: f"AxBxC, as in {name}:2x2x1",
        }
        raise UserError(f"--topology={text}: the shape of {name} is {like[len(chip.host)]}")
    if chip.is_tpu:
        _check_slice(text, chip, shape)
    elif shape[0] > chip.host[0] and shape[0] % chip.host[0]:
        raise UserError(
            f"--topology={text}: a node has {chip.host[0]} GPUs, so the number of GPUs must be at "
            f"most {chip.host[0]}, or a multiple of it"
        )
    if slices < 1:
        raise UserError(f"--slices={slices} must be at least 1")
    return Topology(chip, shape, slices)


def _check_slice(text: str, chip: Chip, shape: tuple[int, ...]) -> None:
    """Raises UserError if no slice has this shape.

    The check is needed because an invalid shape can make the TPU compiler abort the process.
    """
    assert chip.largest is not None
    if len(shape) == 2:
        # Both sides are powers of two, and the longer one is at most twice the shorter one.
        sides = [2**n for n in range(chip.largest[0].bit_length())]
        slices = [(a, b) for a in sides for b in sides if a <= b <= 2 * a]
        if tuple(sorted(shape)) not in slices:
            raise UserError(
                f"--topology={text}: the slices of {chip.name} are "
                f"{', '.join(map(_shape, slices))} ({chip.largest_chips:,} chips), in either order"
            )
        return
    if math.prod(shape) > chip.largest_chips:
        raise UserError(
            f"--topology={text}: the largest slice of {chip.name} is {_shape(chip.largest)}, "
            f"{chip.largest_chips:,} chips; use a smaller one, or several with --slices"
        )
    within = all(size <= part for size, part in zip(shape, chip.host, strict=True))
    unit = (CUBE, CUBE, CUBE) if max(shape) > CUBE else chip.host
    if not within and any(size % part for size, part in zip(shape, unit, strict=True)):
        nearest = [-(-size // part) * part for size, part in zip(shape, unit, strict=True)]
        raise UserError(
            f"--topology={text}: a slice of {chip.name} consists of whole hosts of "
            f"{_shape(chip.host)} chips, or of whole cubes of 4x4x4 if a side is above 4, such as "
            f"{chip.name}:{_shape(nearest)}"
        )


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _gpu_fraction() -> float:
    """Returns the fraction of a GPU's memory that JAX allocates."""
    text = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or str(GPU_MEMORY_FRACTION)
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise UserError(f"XLA_PYTHON_CLIENT_MEM_FRACTION={text} must be above 0 and at most 1")
    return fraction


def set_compiler_environment() -> None:
    """Sets environment variables of the TPU compiler; call it before the first import of jax."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",  # this machine has no metadata server
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans may run at once
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5p-8",  # any known type; each compilation passes a topology
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def tpu_devices(topology: Topology) -> Sequence[Any]:
    """Returns abstract devices of a TPU topology, for which XLA can compile.

    Raises:
      UserError: if libtpu is not installed or rejects the shape.
    """
    try:
        import libtpu  # noqa: F401, only its presence matters
    except ImportError:
        raise UserError(
            "compiling for a TPU needs its compiler: pip install 'soda-jax[tpu]' (no TPU is needed), "
            "or add --estimate"
        ) from None
    from jax.experimental import topologies

    chip = topology.chip
    # The compiler needs the shape of a host; a slice smaller than a host is treated as one host.
    bounds = tuple(map(min, topology.shape, chip.host))
    name = f"{chip.name}:{_shape(topology.shape)}"
    settings: dict[str, Any] = {"chip_config_name": chip.config} if chip.config else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=name,
            chips_per_host_bounds=(*bounds, 1)[:3],
            num_slices=topology.slices,
            **settings,
        )
    except Exception as error:  # the public API does not name the compiler's exception
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--topology={name}: the TPU compiler rejects it: {reason}") from None
    if len(description.devices) != topology.devices:
        raise UserError(
            f"--topology={name}: this libtpu creates {len(description.devices)} devices for "
            f"{topology.size}; install the libtpu version that soda-jax[tpu] requires"
        )
    return description.devices
