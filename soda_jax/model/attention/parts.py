"""Runs attention kernels, which XLA cannot partition, on the local shards of each device."""

from collections.abc import Callable, Sequence

import jax

from soda_jax.model.placement import Axes, Placement


def splits_heads(placement: Placement, query: jax.Array, key: jax.Array) -> bool:
    """Returns whether query heads and kv heads can be split by the same factor."""
    heads, groups = query.shape[2], key.shape[2]
    return placement.ways("kv_heads", groups) == placement.ways("heads", heads)


def array_axes(
    placement: Placement, query: jax.Array, key: jax.Array, sequence: str | None
) -> tuple[Axes, Axes, Axes]:
    """Returns the logical axes of query, key and value; only queries are split over `sequence`."""
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
    """Returns `kernel(*arrays)`, computed on local shards; the result is sharded like the query.

    Args:
      kernel: function of local arrays.
      placement: sharding of the arrays.
      arrays: query, key, value and further arguments of the kernel.
      others: logical axes of the further arguments.
      sequence: logical axis of the query's sequence dimension; None if it is not split.
    """
    axes = (*array_axes(placement, arrays[0], arrays[1], sequence), *others)
    shardings = [placement.sharding(a, x.shape) for a, x in zip(axes, arrays, strict=True)]
    if shardings[0] is None:  # one device
        return kernel(*arrays)
    inputs = tuple(one.spec for one in shardings if one is not None)
    return placement.on_shards(kernel, inputs, inputs[0])(*arrays)
