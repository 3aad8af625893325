"""Which mesh axes split which dimension: logical axis names in, shardings out.

The model names the dimensions of its arrays ("embed", "mlp", …) and never speaks of devices.
Adding a mesh axis is one line in `MESH_AXES`.
"""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Mesh axis -> the logical axes that it splits, in the order of the mesh.
MESH_AXES: Mapping[str, tuple[str, ...]] = {
    "dcn": ("batch", "rows"),  # the only axis that crosses TPU slices, see mesh.py
    "data": ("batch", "rows"),  # rows: of a batch whose width is split over fsdp
    "fsdp": ("batch", "embed"),
    "sequence": ("sequence",),
    "tensor": ("heads", "kv_heads", "mlp", "vocabulary", "codebook_size"),
}
# Logical axes that every device holds whole.
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
    """The partition of an array whose dimensions are `logical_axes` (None: whole on each device).

    A mesh axis serves the first dimension that asks for it. With `shape`, a mesh axis that does
    not divide the dimension is dropped, and that dimension is held whole along it: 3 KV heads on
    tensor=2 are replicated, a batch of 2 on data=2 × fsdp=2 is split over data only.

    Raises:
      KeyError: for a logical axis that is not in `rules`.
      ValueError: if `shape` and `logical_axes` differ in length.
    """
    if shape is not None and len(shape) != len(logical_axes):
        raise ValueError(f"axes {tuple(logical_axes)} do not fit the shape {tuple(shape)}")
    used: set[str] = set()
    parts: list[tuple[str, ...] | None] = []
    for place, name in enumerate(logical_axes):
        taken: list[str] = []
        pieces = 1
        for axis in rules[name] if name is not None else ():
            size = mesh.shape.get(axis, 1)
            divides = shape is None or shape[place] % (pieces * size) == 0
            if size > 1 and axis not in used and divides:
                taken.append(axis)
                pieces *= size
        used.update(taken)
        parts.append(tuple(taken) or None)
    return PartitionSpec(*parts)


def sharding(
    mesh: Mesh,
    logical_axes: Sequence[str | None],
    shape: Sequence[int] | None = None,
    rules: Mapping[str, tuple[str, ...]] = RULES,
) -> NamedSharding:
    """`spec` on `mesh`, for device_put, jit and restore."""
    return NamedSharding(mesh, spec(mesh, logical_axes, shape, rules))


def constrain(
    x: jax.Array,
    logical_axes: Sequence[str | None],
    mesh: Mesh | None,
    rules: Mapping[str, tuple[str, ...]] = RULES,
) -> jax.Array:
    """Tells XLA inside jit how `x` lies on `mesh`; `x` itself on one device or with no mesh."""
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, sharding(mesh, logical_axes, x.shape, rules))


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts `mesh` splits the rows of a batch; a batch must be a multiple of it."""
    return math.prod(mesh.shape.get(axis, 1) for axis in RULES["batch"])


def batch_sharding(mesh: Mesh, shape: Sequence[int] | None = None) -> NamedSharding:
    """How a batch [batch, sequence] lies: rows over dcn, data and fsdp, positions over sequence.

    `shape` may also be [batch] alone, for one number a row.
    """
    rank = 2 if shape is None else len(shape)
    return sharding(mesh, ("batch", "sequence")[:rank], shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
