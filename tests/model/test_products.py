"""Tests products.py: bf16 products on a CPU against f64, whatever follows or precedes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soda_jax.model.attention import attend, packed_mask
from soda_jax.model.placement import OneDevice
from soda_jax.model.products import (
    compute_dtype,
    cpu_multiplies_bf16,
    head_gradient,
    head_gradient_rows,
    head_gradient_zeros,
    matmul,
    wide_einsum,
)

CPU = OneDevice("cpu")
# Relative to the largest element; one rounding to bf16 is 2⁻⁸.
TOLERANCE = 2**-7


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape).astype(jnp.bfloat16)


def wide(array):
    return np.asarray(array.astype(jnp.float32), np.float64)


def assert_near(found, expected):
    found = wide(found)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("fpu avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", False),
        ("fpu avx512f avx512_vnni", False),
        ("fpu avx512_bf16x", False),
    ],
)
def test_auto_is_bfloat16_only_where_the_hardware_multiplies_it(tmp_path, flags, has):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: {flags}\n")
    assert cpu_multiplies_bf16(str(path)) is has
    assert not cpu_multiplies_bf16(str(tmp_path / "missing"))
    assert compute_dtype("auto", "tpu") == compute_dtype("auto", "gpu") == "bfloat16"
    expected = "bfloat16" if cpu_multiplies_bf16() else "float32"
    assert compute_dtype("auto", "cpu") == expected
    assert compute_dtype("auto", "cpu", devices=2) == "float32"
    assert compute_dtype("float32", "tpu") == "float32"
    assert compute_dtype("bfloat16", "cpu") == "bfloat16"


@pytest.mark.parametrize("shape", [(1, 8, 8), (48, 16, 32), (256, 192, 512), (64, 1, 128)])
def test_products_and_gradients_in_bf16(shape):
    tokens, inputs, outputs = shape
    x, weight = random(0, tokens, inputs), random(1, inputs, outputs)
    gradient = random(2, tokens, outputs)

    def loss(x, weight):
        return jnp.sum(matmul(x, weight, CPU).astype(jnp.float32) * gradient)

    product = jax.jit(lambda x, w: matmul(x, w, CPU))(x, weight)
    d_x, d_weight = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, weight)
    assert product.dtype == d_x.dtype == d_weight.dtype == jnp.bfloat16
    assert_near(product, wide(x) @ wide(weight))
    assert_near(d_x, wide(gradient) @ wide(weight).T)
    assert_near(d_weight, wide(x).T @ wide(gradient))


def test_a_checkpoint_policy_sees_the_products():
    # With the policy "dots", the backward pass repeats no product: 2 forward, 2 · 2 backward, 0 again.
    def loss(x, first, second):
        return jnp.sum(matmul(matmul(x, first, CPU), second, CPU))

    x, first, second = (jnp.ones((8, 8)) for _ in range(3))
    counts = {}
    for name, policy in (("dots", jax.checkpoint_policies.checkpoint_dots), ("full", None)):
        gradient = jax.grad(jax.checkpoint(loss, policy=policy), argnums=(0, 1, 2))
        counts[name] = str(jax.make_jaxpr(gradient)(x, first, second)).count("dot_general[")
    assert counts["dots"] < counts["full"]


@pytest.mark.parametrize("shape", [(128, 64, 256), (8, 8, 8)])
def test_a_bf16_product_may_be_transposed(shape):
    # Without the barrier, XLA (jaxlib 0.10.2) swaps the operands, and the program raises UNIMPLEMENTED.
    tokens, inputs, outputs = shape
    x, weight = random(0, tokens, inputs), random(1, inputs, outputs)
    expected = (wide(x) @ wide(weight)).T
    assert_near(jax.jit(lambda x, w: matmul(x, w, CPU).T)(x, weight), expected)
    assert_near(jax.jit(lambda x, w: wide_einsum("ti,io->to", x, w).T)(x, weight), expected)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_gradient_of_the_head(platform, dtype):
    tokens, rows, width, groups = 24, 40, 16, 3
    d_logits = random(0, groups, tokens, rows).astype(dtype)
    hidden = random(1, groups, tokens, width).astype(dtype)
    block = jnp.zeros((groups, rows, width), dtype)

    def gradient(d_logits, hidden):
        total = head_gradient_zeros(block, platform) + head_gradient(d_logits, hidden, platform)
        return head_gradient_rows(total, platform)

    found = jax.jit(gradient)(d_logits, hidden)
    assert found.dtype == jnp.float32
    assert_near(found, np.einsum("gtv,gtd->gvd", wide(d_logits), wide(hidden)))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 16), (1, 1, 8), (6, 1, 32)])
def test_attention_in_bf16(heads, kv_heads, head_dim):
    batch, length = 2, 32
    q = random(0, batch, length, heads, head_dim)
    k, v = (random(seed, batch, length, kv_heads, head_dim) for seed in (1, 2))
    weight = random(3, *q.shape)
    mask = packed_mask(jnp.asarray(np.arange(length) // 20)[None].repeat(batch, 0))

    def loss(q, k, v):
        mixed = attend(q, k, v, mask, CPU)
        return jnp.sum(mixed.astype(jnp.float32) * weight.astype(jnp.float32)), mixed

    found, mixed = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    arrays = [array.astype(jnp.float32) for array in (q, k, v)]
    expected, expected_mixed = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays)
    assert mixed.dtype == jnp.bfloat16
    for ours, reference in zip((mixed, *found), (expected_mixed, *expected), strict=True):
        # The softmax weights and the gradient of the scores are rounded to bf16 too.
        assert np.abs(wide(ours) - wide(reference)).max() < 4 * TOLERANCE * np.abs(reference).max()
