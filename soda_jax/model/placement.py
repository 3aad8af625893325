"""Defines the interface between a model and the devices that it runs on."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

Axes = tuple[str | None, ...]


class Placement(Protocol):
    """Interface for sharding arrays by their logical axes.

    `soda_jax.parallel.placement.OnMesh` implements it for a mesh, `OneDevice` for one device.
    """

    @property
    def platform(self) -> str:
        """Platform of the devices, "cpu", "gpu" or "tpu", which selects the kernels.

        The devices need not exist on this machine: `soda plan` compiles for other machines.
        """
        ...

    @property
    def devices(self) -> int:
        """Number of devices."""
        ...

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """Returns `x` with the sharding of its logical axes."""
        ...

    def ways(self, axis: str, size: int) -> int:
        """Returns the number of shards of a dimension of length `size` with logical axis `axis`."""
        ...

    def sharding(self, axes: Axes, shape: Sequence[int]) -> jax.sharding.NamedSharding | None:
        """Returns the sharding of an array; None on one device."""
        ...

    def on_shards(self, function: Callable[..., jax.Array], inputs: Any, output: Any) -> Any:
        """Returns `function` mapped over the local shards of each device, as `jax.shard_map` does.

        Attention kernels, which XLA cannot partition, and the loss use it.

        Args:
          function: function of local arrays.
          inputs: PartitionSpecs of the arguments, as `in_specs` of `jax.shard_map`.
          output: PartitionSpecs of the result, as `out_specs`.
        """
        ...


class OneDevice:
    """Implements `Placement` for one device; the default, "cpu", selects portable kernels."""

    devices = 1

    def __init__(self, platform: str = "cpu"):
        self.platform = platform

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """Returns `x`."""
        return x

    def ways(self, axis: str, size: int) -> int:
        """Returns 1."""
        return 1

    def sharding(self, axes: Axes, shape: Sequence[int]) -> None:
        """Returns None."""

    def on_shards(self, function: Callable[..., jax.Array], inputs: Any, output: Any) -> Any:
        """Returns `function`."""
        return function


ONE_DEVICE = OneDevice()


def one_cpu(placement: Placement) -> bool:
    """Returns whether arrays are on one CPU device, where products have special forms."""
    return placement.platform == "cpu" and placement.devices == 1
