"""Attention over packed windows. No backend attends across segment boundaries."""

from collections.abc import Callable

import jax

from soda_jax.errors import UserError
from soda_jax.model.attention.plain import attend, packed_mask
from soda_jax.model.placement import Placement
from soda_jax.registry import ATTENTION_BACKENDS

__all__ = ["BACKENDS", "attend", "backend_for", "packed_attention", "packed_mask"]

# Built-in backends by platform; "auto" selects the first. Backends of plugins are not checked.
BACKENDS = {"cpu": ("xla",), "gpu": ("triton", "mosaic", "xla"), "tpu": ("splash", "xla")}

Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@ATTENTION_BACKENDS.register("xla")
def _xla(segment_ids: jax.Array, placement: Placement) -> Attention:
    mask = packed_mask(segment_ids)
    return lambda query, key, value: attend(query, key, value, mask, placement)


@ATTENTION_BACKENDS.register("splash")
def _splash(segment_ids: jax.Array, placement: Placement) -> Attention:
    from soda_jax.model.attention.splash import splash_attention

    return splash_attention(segment_ids, placement)


@ATTENTION_BACKENDS.register("triton")
def _triton(segment_ids: jax.Array, placement: Placement) -> Attention:
    from soda_jax.model.attention.triton import triton_attention

    return triton_attention(segment_ids, placement)


@ATTENTION_BACKENDS.register("mosaic")
def _mosaic(segment_ids: jax.Array, placement: Placement) -> Attention:
    from soda_jax.model.attention.mosaic import ranged_attention

    return ranged_attention(segment_ids, placement)


def backend_for(name: str, platform: str) -> str:
    """Returns the backend that `model.attention = name` selects on a platform.

    Raises:
      UserError: for a name that is not registered, or a built-in backend of another platform.
    """
    here = BACKENDS.get(platform, ("xla",))
    if name == "auto":
        return here[0]
    ATTENTION_BACKENDS.get(name, "model.attention")
    built_in = {backend for names in BACKENDS.values() for backend in names}
    if name in built_in and name not in here:
        raise UserError(
            f"model.attention = {name!r} does not run on {platform}; use auto or {', '.join(here)}"
        )
    return name


def packed_attention(segment_ids: jax.Array, backend: str, placement: Placement) -> Attention:
    """Returns a function that computes causal grouped-query attention within segments.

    The mask or the kernel arguments are computed once and used by all layers.

    Args:
      segment_ids: int32 `[batch, sequence]`; must not decrease along the sequence.
      backend: "auto" or a registered backend.
      placement: sharding of the arrays.

    Returns:
      A function of query `[batch, sequence, heads, head_dim]`, key and value `[batch, sequence,
      kv_heads, head_dim]`, whose result has the shape and dtype of query. Head h attends with kv
      head h // (heads / kv_heads); the softmax is computed in f32.

    Raises:
      UserError: for a backend that is unknown or does not run on the platform.
    """
    chosen = backend_for(backend, placement.platform)
    return ATTENTION_BACKENDS.get(chosen, "model.attention")(segment_ids, placement)
