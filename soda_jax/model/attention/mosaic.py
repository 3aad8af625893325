"""Attention on Hopper and Blackwell GPUs with the Mosaic kernels of tokamax.

The kernel receives a range of keys for each query, from the start of the query's segment up to
the query's own position. No mask is materialized, blocks outside the range are skipped, and keys
are not repeated for the query heads that share them. tokamax's public function does not accept
such ranges, so `_kernel` imports the kernels from private modules; no other module does.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from soda_jax.errors import UserError
from soda_jax.model.attention.parts import run_on_parts
from soda_jax.model.placement import Placement

MOSAIC, REFERENCE = "mosaic_gpu", "xla"  # tokamax implementations; REFERENCE is for tests


def ranged_attention(
    segment_ids: jax.Array, placement: Placement, kernel: str = MOSAIC
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Implements `packed_attention`.

    Args:
      segment_ids: int32 `[batch, sequence]`.
      placement: sharding of the arrays. Heads are split only if query heads and kv heads can be
        split by the same factor. Queries are split over the sequence axis, keys and values are not.
      kernel: name of an implementation in tokamax.

    Raises:
      UserError: if tokamax is not installed.
    """
    first, last = key_ranges(segment_ids)
    run = _kernel(kernel)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        rows = ("batch", "sequence")
        arrays = (query, key, value, first, last)
        return run_on_parts(run, placement, arrays, (rows, rows), "sequence")

    return attend


def key_ranges(segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the first key and the last key + 1 of each query, both int32 `[batch, sequence]`."""
    positions = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    positions = jnp.broadcast_to(positions, segment_ids.shape)
    begins = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    first = jax.lax.cummax(jnp.where(begins, positions, 0), axis=1)
    return first, positions + 1


def _kernel(name: str) -> Callable[..., jax.Array]:
    try:
        from tokamax._src.ops.attention import api, base
    except ImportError:
        raise UserError(
            "model.attention = mosaic needs tokamax: pip install 'soda-jax[gpu]', or set "
            "--config.model.attention=triton"
        ) from None
    from absl import flags

    if not flags.FLAGS.is_parsed():
        # Otherwise tokamax would parse the command line of the process.
        flags.FLAGS.mark_as_parsed()
    return functools.partial(_run, api.IMPLEMENTATIONS[name], base.Mask)


def _run(implementation: Any, mask: Any, *arrays: jax.Array) -> jax.Array:
    query, key, value, first, last = arrays
    ranges = mask(k_start=first[:, None, :], k_end=last[:, None, :])
    return implementation(query, key, value, mask=ranges, logits_scale=query.shape[-1] ** -0.5)
