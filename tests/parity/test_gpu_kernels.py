"""Attention by tokamax: the ranges that its kernels get, through its own reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokamax")


from soda_jax.model.attention import attend, packed_mask
from soda_jax.model.attention.mosaic import REFERENCE, ranged_attention
from soda_jax.model.placement import OneDevice

BATCH, LENGTH, HEADS, GROUPS, HEAD_DIM = 2, 256, 4, 2, 64


def arrays(dtype):
    rng = np.random.default_rng(0)
    segments = np.cumsum(rng.random((BATCH, LENGTH)) < 0.03, axis=1).astype(np.int32)

    def normal(heads):
        return jnp.asarray(rng.normal(size=(BATCH, LENGTH, heads, HEAD_DIM)), dtype)

    return jnp.asarray(segments), normal(HEADS), normal(GROUPS), normal(GROUPS), normal(HEADS)


def with_gradients(attention, query, key, value, cotangent):
    out, pull = jax.vjp(attention, query, key, value)
    return out, *pull(cotangent)


def test_ranges_give_the_numbers_of_the_plain_attention():
    segments, *rest = arrays(jnp.float32)
    with jax.default_matmul_precision("highest"):
        found = with_gradients(ranged_attention(segments, OneDevice(), REFERENCE), *rest)
        mask = packed_mask(segments)
        wanted = with_gradients(lambda q, k, v: attend(q, k, v, mask), *rest)
    for name, a, b in zip(("out", "query", "key", "value"), found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture
def hopper(monkeypatch):
    """tokamax takes this machine for one with an H100; what it makes can be lowered, not run."""
    from tokamax._src import gpu_utils

    for name in ("is_sm90", "has_mosaic_gpu_support"):
        monkeypatch.setattr(gpu_utils, name, lambda device=None: True)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_mosaic_kernels_are_made_for_a_hopper_forward_and_backward(hopper, head_dim):
    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((BATCH, LENGTH, *sizes), dtype)

    def both(segments, *rest):
        return with_gradients(ranged_attention(segments, OneDevice("gpu")), *rest)

    arguments = (
        shape(dtype=jnp.int32), shape(HEADS, head_dim), shape(GROUPS, head_dim),
        shape(GROUPS, head_dim), shape(HEADS, head_dim),
    )  # fmt: skip
    module = jax.jit(both).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    # The forward kernel, and those for the gradients of queries and of keys and values.
    assert module.count("custom_call @mosaic_gpu") >= 2
    assert f"x{LENGTH}x{LENGTH}x" not in module  # nowhere is a mask or are scores whole
