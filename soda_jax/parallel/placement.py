"""Implements `soda_jax.model.placement.Placement` with the sharding rules."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from soda_jax.parallel import rules


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """Implements `Placement` for a mesh.

    Attributes:
      mesh: the device mesh.
    """

    mesh: Mesh

    @property
    def platform(self) -> str:
        """Platform of the devices of the mesh, which may belong to other processes."""
        return self.mesh.devices.flat[0].platform

    @property
    def devices(self) -> int:
        """Number of devices of the mesh."""
        return self.mesh.size

    def constrain(self, x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
        """Returns `x` with the sharding of its logical axes."""
        return rules.constrain(x, axes, self.mesh)

    def ways(self, axis: str, size: int) -> int:
        """Returns the number of shards of a dimension of length `size` with logical axis `axis`."""
        local = self._sharding((axis,), (size,)).shard_shape((size,))
        return size // local[0]

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding | None:
        """Returns the sharding of an array; None if the mesh has one device."""
        return None if self.mesh.size == 1 else self._sharding(axes, shape)

    def _sharding(self, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        return rules.sharding(self.mesh, axes, shape)

    def on_shards(self, function: Callable[..., jax.Array], inputs: Any, output: Any) -> Any:
        """Returns `function` wrapped in `shard_map`, or unchanged if the mesh has one device."""
        if self.mesh.size == 1:
            return function
        # check_vma is off because the kernels do not annotate the mesh axes over which values vary.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=inputs, out_specs=output, check_vma=False
        )
