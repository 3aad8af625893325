"""The machines that a plan knows, and their names on the command line."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from soda_jax.errors import UserError
from soda_jax.hardware import CHIPS, GPU_MEMORY_FRACTION, Chip

EXAMPLES = "v4:2x2x4, v5e:4x8, v5p:4x4x8, v6e:8x8, tpu7x:2x2x1, h100:8"
CUBE = 4  # chips along an edge of the cubes of which slices of v4, v5p and tpu7x consist


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of chips of one kind, connected in a shape.

    Attributes:
      chip: the kind.
      shape: of a slice, chips along each dimension; `(n,)` for GPUs.
      slices: number of slices, which the network of the data center connects.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Devices that JAX shows, which a mesh counts."""
        return self.chips * self.chip.devices

    @property
    def domains(self) -> int:
        """What `mesh.dcn=-1` counts: slices of TPUs, nodes of GPUs (up to eight, one NVLink domain)."""
        nodes = 1 if self.is_tpu else -(-self.shape[0] // self.chip.host[0])
        return nodes * self.slices

    @property
    def is_tpu(self) -> bool:
        """Whether the TPU compiler can compile for it."""
        return self.chip.is_tpu

    @property
    def platform(self) -> str:
        """JAX's name for it."""
        return "tpu" if self.is_tpu else "gpu"

    @property
    def memory(self) -> float:
        """Bytes of a device that the training step may use.

        Raises:
          UserError: if XLA_PYTHON_CLIENT_MEM_FRACTION, which applies to GPUs, is not a fraction.
        """
        return self.chip.usable * (1.0 if self.is_tpu else _gpu_fraction())

    @property
    def size(self) -> str:
        """Chips, and devices where they are not the same, for a line of text."""
        chips = f"{self.chips} chip{'s' * (self.chips > 1)}"
        return chips if self.devices == self.chips else f"{chips} ({self.devices} devices)"

    def __str__(self) -> str:
        name = f"{self.chip.name}:{_shape(self.shape)}"
        return name if self.slices == 1 else f"{name}, {self.slices} slices"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """The topology `CHIP:SHAPE`, such as v5p:4x4x8 or h100:8.

    Raises:
      UserError: for an unknown chip, a shape that no slice of it has, a number of GPUs that is not a
        number of whole nodes, or slices below 1.
    """
    name, _, size = text.lower().partition(":")
    if name not in CHIPS or not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", size):
        raise UserError(
            f"--topology={text} is unknown: CHIP:SHAPE with a chip of {', '.join(CHIPS)}, as in {EXAMPLES}"
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
            f"--topology={text}: a node has {chip.host[0]} GPUs, so their number is at most "
            f"{chip.host[0]}, or a multiple of it"
        )
    if slices < 1:
        raise UserError(f"--slices={slices} must be at least 1")
    return Topology(chip, shape, slices)


def _check_slice(text: str, chip: Chip, shape: tuple[int, ...]) -> None:
    """Refuses a shape that no slice has. The compiler takes more, but can end the process on such a one."""
    assert chip.largest is not None
    if len(shape) == 2:
        slices = _flat_slices(chip.largest)
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
            f"--topology={text}: a slice of {chip.name} is whole hosts of {_shape(chip.host)} chips, and "
            f"beyond 4x4x4 whole cubes of 4x4x4, such as {chip.name}:{_shape(nearest)}"
        )


def _flat_slices(largest: tuple[int, ...]) -> list[tuple[int, int]]:
    """Slices of a square pod: powers of two, and no side more than twice the other."""
    sides = [2**n for n in range(largest[0].bit_length())]
    return [(a, b) for a in sides for b in sides if a <= b <= 2 * a]


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _gpu_fraction() -> float:
    """The part of a GPU's memory that JAX allocates."""
    text = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or str(GPU_MEMORY_FRACTION)
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise UserError(f"XLA_PYTHON_CLIENT_MEM_FRACTION={text} must be above 0 and at most 1")
    return fraction


def tpu_devices(topology: Topology) -> Sequence[Any]:
    """Devices to compile for, of a TPU topology that this machine does not have.

    Raises:
      UserError: if libtpu is not installed or does not know the shape.
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
    # The compiler wants the shape of a host, which is that of the slice where that is part of a host.
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
        raise UserError(f"--topology={name}: the TPU compiler refuses it: {reason}") from None
    if len(description.devices) != topology.devices:
        raise UserError(
            f"--topology={name}: this libtpu makes {len(description.devices)} devices of its "
            f"{topology.size}; install the version that soda-jax[tpu] names"
        )
    return description.devices
