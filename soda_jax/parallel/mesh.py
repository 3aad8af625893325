"""Builds the device mesh: chooses the sizes of its axes and the order of the devices."""

import collections
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from soda_jax.errors import UserError
from soda_jax.parallel.rules import MESH_AXES

AXES = tuple(MESH_AXES)
TILE = 128  # side of a TPU tile, in elements


def make_mesh(
    axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Returns a mesh with the axes (dcn, data, fsdp, sequence, tensor).

    The axes have the type `AxisType.Auto` (the default of `jax.make_mesh` is Explicit), so XLA
    propagates shardings from the constraints. Neighboring devices are on the last axis, tensor,
    which communicates most. The first axis, dcn, is the only one that crosses TPU slices.

    Args:
      axes: number of devices along each axis; 1 for an axis that is not given. -1 for dcn means the
        number of slices. One other axis may be -1 to use the remaining devices. The default is
        `data=-1`.
      devices: by default all devices of all processes.

    Raises:
      UserError: if an axis is unknown, a size is neither positive nor -1, two axes besides dcn are
        -1, the product is not the number of devices, dcn is not the number of TPU slices, or the
        slices differ in size.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(axes, len(devices), slice_count(devices))
    arranged = _arrange(tuple(sizes.values()), devices)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(
    axes: Mapping[str, int] | None, devices: int, slices: int = 1, width: int | None = None
) -> dict[str, int]:
    """Returns the number of devices along each axis, with every -1 replaced.

    `data` and `fsdp` may both be -1 if `width` is given. fsdp is then the largest common divisor of
    `width` and the remaining devices that leaves at least 128 columns per device, and data uses the
    rest. On a TPU, narrower shards are padded to a tile, and XLA gathers them with an all-reduce
    (docs/plan.md compares such meshes).

    Args:
      axes: see `make_mesh`.
      devices: number of devices.
      slices: number of slices that the devices form.
      width: hidden size of the model, in columns.

    Raises:
      UserError: if an axis is unknown, a size is neither positive nor -1, too many axes are -1, or
        the product is not the number of devices.
    """
    sizes = dict.fromkeys(AXES, 1) | dict(axes or {"data": -1})
    unknown = [name for name in sizes if name not in AXES]
    if unknown:
        raise UserError(f"mesh axis {unknown[0]!r} is unknown; the axes are {', '.join(AXES)}")
    given = " × ".join(f"{name}={size}" for name, size in sizes.items())
    if sizes["dcn"] == -1:
        sizes["dcn"] = slices
    fills = [name for name, size in sizes.items() if size == -1]
    both = width is not None and set(fills) == {"data", "fsdp"}
    if (len(fills) > 1 and not both) or any(size < 1 and size != -1 for size in sizes.values()):
        pair = "" if width is None else ", or both data and fsdp,"
        raise UserError(
            f"mesh {given}: sizes must be positive; besides dcn, at most one{pair} may be -1 (fill)"
        )
    if both:
        assert width is not None
        remaining = devices // math.prod(sizes[name] for name in AXES if name not in fills)
        divisors = [
            n
            for n in range(1, remaining + 1)
            if remaining % n == 0 and width % n == 0 and width // n >= TILE
        ]
        sizes["fsdp"], fills = max(divisors, default=1), ["data"]
    if fills:
        sizes[fills[0]] = max(1, devices // -math.prod(sizes.values()))
    if math.prod(sizes.values()) != devices:
        raise UserError(
            f"mesh {given} does not multiply to {devices} devices; change a size, or set one to -1"
        )
    return sizes


def slice_count(devices: Sequence[jax.Device]) -> int:
    """Returns the number of TPU slices, of NVLink domains (GPU), or else of processes."""
    return len({_slice(device) for device in devices})


def _slice(device: jax.Device) -> int:
    """Returns the index of the TPU slice, of the NVLink domain (GPU), or else of the process."""
    number = getattr(device, "slice_index", None)
    if number is None:  # a TPU of a single-slice run has no slice index
        return 0 if device.platform == "tpu" else device.process_index
    return number


def _arrange(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Returns the devices as an array of `shape`, dcn first, ordered by network topology.

    Raises:
      UserError: if an axis other than dcn would cross TPU slices, or if slices differ in size.
    """
    if devices[0].platform != "tpu":
        # GPUs and simulated devices are sorted by slice and process, so that inner axes
        # stay within a host where possible. Any axis may cross hosts.
        ordered = sorted(devices, key=lambda d: (_slice(d), d.process_index, d.id))
        return np.array(ordered, dtype=object).reshape(shape)
    chips = collections.Counter(map(_slice, devices))
    if len(chips) != shape[0] or len(set(chips.values())) > 1:
        slices = ", ".join(f"{chips[number]} in slice {number}" for number in sorted(chips))
        raise UserError(
            f"mesh.dcn={shape[0]}, but the TPU devices are {slices}; only dcn may cross slices, and "
            "slices must have equal size: set mesh.dcn=-1"
        )
    if shape[0] == 1:
        create = functools.partial(mesh_utils.create_device_mesh, shape, devices)
    else:
        inner, outer = (1, *shape[1:]), (shape[0], *(1 for _ in shape[1:]))
        create = functools.partial(mesh_utils.create_hybrid_device_mesh, inner, outer, devices)
    try:
        return create()
    except NotImplementedError:  # several axes must share a physical axis of the torus
        return create(allow_split_physical_axes=True)
