"""The device mesh."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

from soda_jax.errors import UserError
from soda_jax.parallel.rules import MESH_AXES

AXES = tuple(MESH_AXES)


def make_mesh(
    axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arranges devices along the axes (data, fsdp, sequence, tensor).

    The axes are `AxisType.Auto`: XLA propagates shardings from the constraints. (`jax.make_mesh`
    alone would make them Explicit.) Neighbouring devices land on the last axis, tensor, which
    talks the most.

    Args:
      axes: devices along each axis; a missing axis has 1; one axis may be -1 and takes what the
        others leave. Nothing at all means `data=-1`.
      devices: all devices of all processes by default.

    Raises:
      UserError: if an axis is unknown, a size is not positive, two axes are -1, or the product
        is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict.fromkeys(AXES, 1) | dict(axes or {"data": -1})
    unknown = [name for name in sizes if name not in AXES]
    if unknown:
        raise UserError(f"mesh axis {unknown[0]!r} is unknown; the axes are {', '.join(AXES)}")
    told = " × ".join(f"{name}={size}" for name, size in sizes.items())
    fills = [name for name, size in sizes.items() if size == -1]
    if len(fills) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"mesh {told}: sizes are positive, and at most one is -1 (fill)")
    if fills:
        sizes[fills[0]] = max(1, len(devices) // -math.prod(sizes.values()))
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"mesh {told} does not make {len(devices)} devices; change a size, or set one to -1"
        )
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )
