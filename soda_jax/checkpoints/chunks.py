"""How large parameters lie in a checkpoint: in chunks, so that a part is read without the rest."""

import math
from typing import Any

# An array with no more bytes than this on a device is one chunk a device. Many times what orbax
# calls too small for good speed (1 MiB).
CHUNK_BYTES = 64 << 20


def save_arguments(tree: Any) -> Any:
    """The `SaveArgs` of every leaf of `tree`, which are jax arrays.

    A large array with three or more dimensions is a stack (of layers, of codebooks): each chunk holds
    one index of the first axis, of what a device holds of it. A large matrix is cut into chunks of at
    most `CHUNK_BYTES`, along its rows unless its columns are split over devices.
    """
    import jax
    import orbax.checkpoint as ocp

    def arguments(leaf: jax.Array) -> ocp.SaveArgs:
        here = leaf.sharding.shard_shape(leaf.shape)
        size = math.prod(here) * leaf.dtype.itemsize
        if leaf.ndim < 2 or size <= CHUNK_BYTES:
            return ocp.SaveArgs()
        if leaf.ndim == 2:
            return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)
        # Orbax cuts the axes it is given down to single indices, then goes on with others if that is
        # not small enough: it is to stop there.
        return ocp.SaveArgs(chunk_byte_size=max(CHUNK_BYTES, size // here[0]), shard_axes=(0,))

    return jax.tree.map(arguments, tree)
