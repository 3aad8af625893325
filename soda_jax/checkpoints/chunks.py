"""Splits large parameters of a checkpoint into chunks that can be read separately."""

import math
from typing import Any

# An array whose shards have at most this size is stored with one chunk per shard. Orbax warns
# that limits below 1 MiB may reduce performance.
CHUNK_BYTES = 64 << 20


def save_arguments(tree: Any) -> Any:
    """Returns the `SaveArgs` of every leaf of `tree`, a tree of jax arrays.

    A large array with three or more dimensions is a stack of layers or codebooks; each chunk
    contains one layer or codebook of a shard. A large matrix is split into chunks of at most
    `CHUNK_BYTES`, along the sharded axis, or along the longest axis if none is sharded.
    """
    import jax
    import orbax.checkpoint as ocp

    def arguments(leaf: jax.Array) -> ocp.SaveArgs:
        shard = leaf.sharding.shard_shape(leaf.shape)
        size = math.prod(shard) * leaf.dtype.itemsize
        if leaf.ndim < 2 or size <= CHUNK_BYTES:
            return ocp.SaveArgs()
        if leaf.ndim == 2:
            return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)
        # Orbax splits `shard_axes` into single indices and then, if a chunk is still larger than
        # the limit, the other axes. The higher limit prevents the second split.
        return ocp.SaveArgs(chunk_byte_size=max(CHUNK_BYTES, size // shard[0]), shard_axes=(0,))

    return jax.tree.map(arguments, tree)
