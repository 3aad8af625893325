"""The device mesh: sizes of the axes, and which device stands where."""

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
TILE = 128


def make_mesh(
    axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arranges devices along the axes (dcn, data, fsdp, sequence, tensor).

    The axes are `AxisType.Auto`: XLA propagates shardings from the constraints. (`jax.make_mesh`
    alone would make them Explicit.) Neighbouring devices land on the last axis, tensor, which
    talks the most; the first, dcn, is the only one that crosses TPU slices.

    Args:
      axes: devices along each axis; a missing axis has 1. dcn may be -1: the number of slices. One
        of the others may be -1 and takes what the rest leaves. Nothing at all means `data=-1`.
      devices: all devices of all processes by default.

    Raises:
      UserError: if an axis is unknown, a size is not positive, two axes are -1, the product is not
        the number of devices, or dcn is not the number of (equal) TPU slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(axes, len(devices), slice_count(devices))
    placed = _place(tuple(sizes.values()), devices)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(
    axes: Mapping[str, int] | None, devices: int, slices: int = 1, width: int | None = None
) -> dict[str, int]:
    """Devices along each axis, with every -1 replaced.

    `data` and `fsdp` may both be -1 where the width of the model is known: fsdp becomes the largest
    divisor that leaves every device at least 128 columns of it, the side of a tile: narrower parts are
    padded, and on TPU gathered by adding whole matrices up (docs/plan.md has both compiled). data takes
    the rest.

    Args:
      axes: see `make_mesh`.
      devices: how many there are.
      slices: that they make up.
      width: of the model.

    Raises:
      UserError: if an axis is unknown, a size is not positive, too many axes are -1, or the product is
        not the number of devices. It shows the sizes as they were given.
    """
    sizes = dict.fromkeys(AXES, 1) | dict(axes or {"data": -1})
    unknown = [name for name in sizes if name not in AXES]
    if unknown:
        raise UserError(f"mesh axis {unknown[0]!r} is unknown; the axes are {', '.join(AXES)}")
    told = " × ".join(f"{name}={size}" for name, size in sizes.items())
    if sizes["dcn"] == -1:
        sizes["dcn"] = slices
    fills = [name for name, size in sizes.items() if size == -1]
    both = width is not None and set(fills) == {"data", "fsdp"}
    if (len(fills) > 1 and not both) or any(size < 1 and size != -1 for size in sizes.values()):
        pair = "" if width is None else ", or data and fsdp both,"
        raise UserError(
            f"mesh {told}: sizes are positive, and at most one{pair} is -1 (fill) beside dcn"
        )
    if both:
        assert width is not None
        left = devices // math.prod(sizes[name] for name in AXES if name not in fills)
        fitting = [
            n for n in range(1, left + 1) if left % n == 0 and width % n == 0 and width // n >= TILE
        ]
        sizes["fsdp"], fills = max(fitting, default=1), ["data"]
    if fills:
        sizes[fills[0]] = max(1, devices // -math.prod(sizes.values()))
    if math.prod(sizes.values()) != devices:
        raise UserError(
            f"mesh {told} does not make {devices} devices; change a size, or set one to -1"
        )
    return sizes


def slice_count(devices: Sequence[jax.Device]) -> int:
    """How many slices (TPU), NVLink domains or processes the devices make up."""
    return len({_slice(device) for device in devices})


def _slice(device: jax.Device) -> int:
    """The slice of a TPU, the NVLink domain of a GPU; the process of a device that has neither."""
    number = getattr(device, "slice_index", None)
    if number is None:  # a TPU that is alone in its slice does not number it
        return 0 if device.platform == "tpu" else device.process_index
    return number


def _place(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """The devices as an array of `shape`, dcn first, in the order that suits their network.

    Raises:
      UserError: if an axis other than dcn would cross TPU slices, or if slices differ in size.
    """
    if devices[0].platform != "tpu":
        # Hosts of GPUs, or simulated devices: slice, then process, stay together, so that the outer
        # axes cross hosts first. Unlike slices of TPUs, any axis may cross them.
        ordered = sorted(devices, key=lambda d: (_slice(d), d.process_index, d.id))
        return np.array(ordered, dtype=object).reshape(shape)
    chips = collections.Counter(map(_slice, devices))
    if len(chips) != shape[0] or len(set(chips.values())) > 1:
        told = ", ".join(f"{chips[number]} in slice {number}" for number in sorted(chips))
        raise UserError(
            f"mesh.dcn={shape[0]}, but the TPU devices are {told}; only dcn may cross slices, which "
            "must be alike: set mesh.dcn=-1"
        )
    if shape[0] == 1:
        lay = functools.partial(mesh_utils.create_device_mesh, shape, devices)
    else:
        inner, outer = (1, *shape[1:]), (shape[0], *(1 for _ in shape[1:]))
        lay = functools.partial(mesh_utils.create_hybrid_device_mesh, inner, outer, devices)
    try:
        return lay()
    except NotImplementedError:  # jax says so where axes must share a dimension of the torus
        return lay(allow_split_physical_axes=True)
