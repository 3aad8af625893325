"""Attention on GPUs with JAX's Triton kernel.

Keys are not repeated for the query heads that share them.
"""

from collections.abc import Callable

import jax
from jax.experimental.pallas.ops.gpu import attention as kernels

from soda_jax.errors import UserError
from soda_jax.model.attention.parts import run_on_parts
from soda_jax.model.placement import Placement

BLOCK = 64
_SIZES = kernels.BlockSizes(
    block_q=BLOCK, block_k=BLOCK, block_q_dkv=BLOCK, block_kv_dkv=BLOCK, block_q_dq=BLOCK,
    block_kv_dq=BLOCK,
)  # fmt: skip


def triton_attention(
    segment_ids: jax.Array, placement: Placement, interpret: bool = False
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Implements `packed_attention`.

    Args:
      segment_ids: int32 `[batch, sequence]`.
      placement: sharding of the arrays. Heads are split only if query heads and kv heads can be
        split by the same factor; sequences are never split.
      interpret: run the kernel in Pallas interpret mode, on any platform, for tests.

    Raises:
      UserError: if the length of the sequence is not a multiple of 64, or it is split over devices.
    """
    length = segment_ids.shape[1]
    if placement.ways("sequence", length) > 1:
        raise UserError(
            "model.attention = triton needs whole sequences: set --config.mesh.sequence=1, or "
            "--config.model.attention=mosaic"
        )
    if length % BLOCK:
        raise UserError(
            f"model.attention = triton: data.sequence_length {length} is not a multiple of {BLOCK}; "
            "change it, or set --config.model.attention=xla"
        )

    def local(query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array) -> jax.Array:
        scale, groups = query.shape[-1] ** -0.5, key.shape[2]

        def one_of_group(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            return kernels.mha(
                query, key, value, ids, sm_scale=scale, causal=True, block_sizes=_SIZES,
                interpret=interpret,
            )  # fmt: skip

        # vmap adds a grid dimension for the query heads of a kv head; keys are not repeated.
        by_group = query.reshape(*query.shape[:2], groups, -1, query.shape[-1])
        mixed = jax.vmap(one_of_group, (3, None, None), 3)(by_group, key, value)
        return mixed.reshape(query.shape)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        arrays = (query, key, value, segment_ids)
        return run_on_parts(local, placement, arrays, (("batch", None),), None)

    return attend
