"""Where a kernel that XLA cannot split finds its part of the arrays on each device."""

from collections.abc import Callable, Sequence

import jax

from soda_jax.model.placement import Axes, Placement


def splits_heads(placement: Placement, query: jax.Array, key: jax.Array) -> bool:
    """Whether heads are split over devices: a device must hold the kv heads of its query heads."""
    heads, groups = query.shape[2], key.shape[2]
    return placement.ways("kv_heads", groups) == placement.ways("heads", heads)


def array_axes(
    placement: Placement, query: jax.Array, key: jax.Array, sequence: str | None
) -> tuple[Axes, Axes, Axes]:
    """Logical axes of query, key and value; `sequence` is that of the queries, keys are whole."""
    split = splits_heads(placement, query, key)
    keys: Axes = ("batch", None, "kv_heads" if split else None, None)
    return ("batch", sequence, "heads" if split else None, None), keys, keys


def run_on_parts(
    kernel: Callable[..., jax.Array],
    placement: Placement,
    arrays: Sequence[jax.Array],
    others: Sequence[Axes],
    sequence: str | None,
) -> jax.Array:
    """`kernel(*arrays)` with each device at its part; the result lies as the query.

    Args:
      kernel: of local arrays.
      placement: of the arrays.
      arrays: query, key, value and what else the kernel takes.
      others: logical axes of the arrays behind the value.
      sequence: logical axis of the queries along the sequence, None where they are whole.
    """
    axes = (*array_axes(placement, arrays[0], arrays[1], sequence), *others)
    laid = [placement.sharding(a, x.shape) for a, x in zip(axes, arrays, strict=True)]
    if laid[0] is None:  # one device
        return kernel(*arrays)
    inputs = tuple(one.spec for one in laid if one is not None)
    return placement.on_shards(kernel, inputs, inputs[0])(*arrays)
