"""What a model asks of the devices that it runs on, without knowing of meshes."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

Axes = tuple[str | None, ...]


class Placement(Protocol):
    """How arrays lie on devices; `soda_jax.parallel.placement.OnMesh` is the one of a mesh.

    Attributes:
      platform: of the devices: "cpu", "gpu" or "tpu". It decides which kernel runs, so that a program can
        be compiled for devices that are not here.
    """

    @property
    def platform(self) -> str:
        """See above."""
        ...

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """`x` with the sharding of its logical axes."""
        ...

    def ways(self, axis: str, size: int) -> int:
        """Over how many devices a dimension of `size` along logical `axis` is split."""
        ...

    def sharding(self, axes: Axes, shape: Sequence[int]) -> jax.sharding.NamedSharding | None:
        """The sharding of an array; None where everything is on one device."""
        ...

    def on_shards(self, function: Callable[..., jax.Array], inputs: Any, output: Any) -> Any:
        """`function` on each device's part of the arrays, as kernels need that XLA cannot split.

        Args:
          function: of local arrays.
          inputs: PartitionSpecs of its arguments, pytree prefixes.
          output: PartitionSpec of its result.
        """
        ...


class OneDevice:
    """Everything on one device."""

    def __init__(self, platform: str = "cpu"):
        """Args: platform: of the device; plain kernels run on every one, so "cpu" fits all."""
        self.platform = platform

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """`x` itself."""
        return x

    def ways(self, axis: str, size: int) -> int:
        """1."""
        return 1

    def sharding(self, axes: Axes, shape: Sequence[int]) -> None:
        """None."""

    def on_shards(self, function: Callable[..., jax.Array], inputs: Any, output: Any) -> Any:
        """`function` itself."""
        return function
