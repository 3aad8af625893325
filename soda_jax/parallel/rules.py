"""Sharding rules, which map logical axis names to mesh axes.

The model names the dimensions of its arrays ("embed", "mlp", …) and is independent of the mesh.
A new mesh axis needs one line in `MESH_AXES` and a field in `MeshConfig`.
"""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Mesh axis -> the logical axes that it splits, in the order of the mesh.
MESH_AXES: Mapping[str, tuple[str, ...]] = {
    "dcn": ("batch", "rows"),  # the only axis that crosses TPU slices, see mesh.py
    "data": ("batch", "rows"),  # rows: batch axis of arrays with an "embed" axis
    "fsdp": ("batch", "embed"),
    "sequence": ("sequence",),
    "tensor": ("heads", "kv_heads", "mlp", "vocabulary", "codebook_size"),
}
# Logical axes that are never sharded.
WHOLE = ("layers", "codebooks", "head_dim")

# Logical axis -> the mesh axes that split it.
RULES: Mapping[str, tuple[str, ...]] = {
    name: tuple(axis for axis, split in MESH_AXES.items() if name in split)
    for name in (*dict.fromkeys(name for split in MESH_AXES.values() for name in split), *WHOLE)
}


def spec(
    mesh: Mesh,
    logical_axes: Sequence[str | None],
    shape: Sequence[int] | None = None,
    rules: Mapping[str, tuple[str, ...]] = RULES,
) -> PartitionSpec:
    """Returns the `PartitionSpec` of an array with dimensions `logical_axes` (None: replicated).

    A mesh axis splits at most one dimension, the first whose rule contains it. If `shape` is given,
    a dimension that the axis does not divide is skipped and is replicated along that axis. For
    example, 3 KV heads are replicated on tensor=2, and a batch of 2 on data=2 × fsdp=2 is
    split over data only.

    Raises:
      KeyError: for a logical axis that is not in `rules`.
      ValueError: if `shape` and `logical_axes` differ in length.
    """
    if shape is not None and len(shape) != len(logical_axes):
        raise ValueError(f"axes {tuple(logical_axes)} do not fit the shape {tuple(shape)}")
    used: set[str] = set()
    parts: list[tuple[str, ...] | None] = []
    for dimension, name in enumerate(logical_axes):
        axes: list[str] = []
        shards = 1
        for axis in rules[name] if name is not None else ():
            size = mesh.shape.get(axis, 1)
            divides = shape is None or shape[dimension] % (shards * size) == 0
            if size > 1 and axis not in used and divides:
                axes.append(axis)
                shards *= size
        used.update(axes)
        parts.append(tuple(axes) or None)
    return PartitionSpec(*parts)


def sharding(
    mesh: Mesh,
    logical_axes: Sequence[str | None],
    shape: Sequence[int] | None = None,
    rules: Mapping[str, tuple[str, ...]] = RULES,
) -> NamedSharding:
    """Returns `spec` as a `NamedSharding` on `mesh`."""
    return NamedSharding(mesh, spec(mesh, logical_axes, shape, rules))


def constrain(
    x: jax.Array,
    logical_axes: Sequence[str | None],
    mesh: Mesh | None,
    rules: Mapping[str, tuple[str, ...]] = RULES,
) -> jax.Array:
    """Constrains the sharding of `x` inside jit; does nothing on one device or without a mesh."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, sharding(mesh, logical_axes, x.shape, rules))


def ways(sizes: Mapping[str, int], logical_axis: str) -> int:
    """Returns the number of shards of a logical axis on a mesh with axes of the given sizes."""
    return math.prod(sizes.get(axis, 1) for axis in RULES[logical_axis])


def batch_sharding(mesh: Mesh, shape: Sequence[int] | None = None) -> NamedSharding:
    """Returns the sharding of a batch [batch, sequence], or [batch] if `shape` has one dimension.

    Rows are split over dcn, data and fsdp, and positions are split over sequence.
    """
    rank = 2 if shape is None else len(shape)
    return sharding(mesh, ("batch", "sequence")[:rank], shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the fully replicated sharding."""
    return NamedSharding(mesh, PartitionSpec())
