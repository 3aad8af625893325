"""How the arrays of a model lie on a mesh: what the model asks of the devices, answered by the rules."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from soda_jax.parallel import rules


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """The `soda_jax.model.placement.Placement` of a mesh.

    Attributes:
      mesh: the devices.
    """

    mesh: Mesh

    @property
    def platform(self) -> str:
        """Of the devices of the mesh, which need not be those of this process."""
        return self.mesh.devices.flat[0].platform

    def constrain(self, x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
        """`x` with the sharding that the rules give its logical axes."""
        return rules.constrain(x, axes, self.mesh)

    def ways(self, axis: str, size: int) -> int:
        """Over how many devices a dimension of `size` along logical `axis` is split."""
        local = self._sharding((axis,), (size,)).shard_shape((size,))
        return size // local[0]

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding | None:
        """The sharding of an array; None on one device."""
        return None if self.mesh.size == 1 else self._sharding(axes, shape)

    def _sharding(self, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        return rules.sharding(self.mesh, axes, shape)

    def on_shards(self, function: Callable[..., jax.Array], inputs: Any, output: Any) -> Any:
        """`function` on each device's part of the arrays."""
        if self.mesh.size == 1:
            return function
        # The kernels are not annotated with what varies over which axis, so that check is off.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=inputs, out_specs=output, check_vma=False
        )
