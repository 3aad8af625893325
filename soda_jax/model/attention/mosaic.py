"""Attention on Hopper and Blackwell GPUs by the Mosaic kernels of tokamax.

A packed window reaches the kernel as two numbers a query: the first key that it may see, where its
document begins, and the one behind the last. No mask is made, blocks outside the range are not computed,
and keys are not repeated for the query heads that share them. The public function of tokamax does not
take such ranges, its kernels do: `_kernel` imports them from private modules, and nothing else in this
project does that.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from soda_jax.errors import UserError
from soda_jax.model.attention.parts import run_on_parts
from soda_jax.model.placement import Placement

MOSAIC, REFERENCE = "mosaic_gpu", "xla"  # tokamax's names; its reference runs anywhere, for tests


def ranged_attention(
    segment_ids: jax.Array, placement: Placement, kernel: str = MOSAIC
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """See `packed_attention`.

    Args:
      segment_ids: int32 `[batch, sequence]`.
      placement: of the arrays. Heads are split where both kinds of head can be; queries over the
        sequence axis, keys and values whole there.
      kernel: tokamax's name of an implementation.

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
    """First key and one behind the last that each query may see, int32 `[batch, sequence]` both."""
    places = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32), segment_ids.shape)
    begins = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    first = jax.lax.cummax(jnp.where(begins, places, 0), axis=1)
    return first, places + 1


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
        # tokamax would parse the command line of the process, whose options are not its own.
        flags.FLAGS.mark_as_parsed()
    return functools.partial(_run, api.IMPLEMENTATIONS[name], base.Mask)


def _run(implementation: Any, mask: Any, *arrays: jax.Array) -> jax.Array:
    query, key, value, first, last = arrays
    ranges = mask(k_start=first[:, None, :], k_end=last[:, None, :])
    return implementation(query, key, value, mask=ranges, logits_scale=query.shape[-1] ** -0.5)
