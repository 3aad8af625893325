"""Splash attention, JAX's Pallas kernel for TPUs, which skips blocks above the diagonal."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from soda_jax.errors import UserError
from soda_jax.model.attention.parts import array_axes, splits_heads
from soda_jax.model.placement import Placement
from soda_jax.model.remat import ATTENTION

# Side of a square tile of scores, a multiple of `LANES`. Two f32 tiles of 512 × 512 fit in the
# vector memory (VMEM) of every TPU generation.
BLOCK = 512
LANES = 128


def splash_attention(
    segment_ids: jax.Array, placement: Placement, interpret: bool = False
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Implements `packed_attention`.

    Args:
      segment_ids: int32 `[batch, sequence]`.
      placement: sharding of the arrays. Heads are split only if query heads and kv heads can be
        split by the same factor. Queries are split over the sequence axis, keys and values are not.
      interpret: run the kernel in Pallas interpret mode, on any platform, for tests.

    Raises:
      UserError: if the length of a sequence shard is not a multiple of 128.
    """
    length = segment_ids.shape[1]
    shards = placement.ways("sequence", length)
    block = _block(length, shards)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        heads, head_dim = query.shape[2], query.shape[3]
        split = splits_heads(placement, query, key)
        ways = placement.ways("heads", heads) if split else 1
        kernel = _kernel(heads // ways, length, shards, block, interpret)

        def local(kernel, query, key, value, query_segments, key_segments):
            def row(query, key, value, query_segments, key_segments):
                ids = splash.SegmentIds(q=query_segments, kv=key_segments)
                return kernel(query, key, value, segment_ids=ids)

            q, k, v = (x.swapaxes(1, 2) for x in (query, key, value))  # heads, then positions
            return jax.vmap(row)(q, k, v, query_segments, key_segments).swapaxes(1, 2)

        query = query * jnp.asarray(head_dim**-0.5, query.dtype)
        arrays = (query, key, value, segment_ids, segment_ids)
        axes = (
            *array_axes(placement, query, key, "sequence"),
            ("batch", "sequence"),
            ("batch", None),
        )
        shardings = [placement.sharding(a, x.shape) for a, x in zip(axes, arrays, strict=True)]
        if None in shardings:  # one device
            return local(kernel, *arrays)
        of_mask = placement.sharding((None, "sequence"), (1, length))
        specs = [one.spec for one in shardings if one is not None]
        inputs = (kernel.manual_sharding_spec(of_mask), *specs)
        return placement.on_shards(local, inputs, specs[0])(kernel, *arrays)

    return attend


def _block(length: int, shards: int) -> int:
    """Returns the largest tile size up to `BLOCK` that divides the length of a sequence shard."""
    part = length // shards
    block = next((size for size in range(BLOCK, 0, -LANES) if part % size == 0), 0)
    if not block:
        raise UserError(
            f"model.attention = splash: data.sequence_length {length} over {shards} devices is {part}, "
            f"not a multiple of {LANES}; change data.sequence_length or mesh.sequence, or set "
            "--config.model.attention=xla"
        )
    return block


def _kernel(heads: int, length: int, shards: int, block: int, interpret: bool) -> Any:
    mask = splash.MultiHeadMask(
        [splash.CausalMask((length, length), shard_count=shards) for _ in range(heads)]
    )
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    return splash.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )
