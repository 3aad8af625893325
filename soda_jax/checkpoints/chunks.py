"""Splits large parameters of a checkpoint into chunks, so that a part can be read alone."""

import math
from typing import Any

# An array of at most this size on a device is one chunk per device. Orbax considers chunks below 1 MiB too
# small for good speed.
CHUNK_BYTES = 64 << 20


def save_arguments(tree: Any) -> Any:
    """Returns the `SaveArgs` of every leaf of `tree`, a tree of jax arrays.

    A large array with three or more dimensions is a stack (of layers or codebooks): a chunk has one index
    of the first axis of the shard. A large matrix is split into chunks of at most `CHUNK_BYTES`, along its
    rows unless its columns are sharded.
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
        # Orbax splits the given axes down to single indices and then, if a chunk is still too large, the
        # other axes. The larger limit prevents the second split.
        return ocp.SaveArgs(chunk_byte_size=max(CHUNK_BYTES, size // shard[0]), shard_axes=(0,))

    return jax.tree.map(arguments, tree)
