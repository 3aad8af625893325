"""Tests output_major.py: products of decoding on one CPU device against f64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soda_jax.model import output_major
from soda_jax.model.decoder import project
from soda_jax.model.output_major import OutputMajor, multiply
from soda_jax.model.quantized import Quantized, quantize

# Relative to the largest element: sums of f32, roundings of activations to bf16 and to two int8 parts.
TOLERANCES = {"float32": 1e-6, "bfloat16": 2**-8, "int8": 1e-4}


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def weights(dtype, weight, inputs=1):
    """Returns a weight in a dtype, and its exact value in f64."""
    if dtype == "int8":
        found = quantize(weight, tuple(range(inputs)))
        scale = np.asarray(found.scale, np.float64)
        return found, np.asarray(found.values, np.float64) * scale
    return weight.astype(dtype), np.asarray(weight.astype(dtype), np.float64)


@pytest.mark.parametrize("tokens", [1, 2, 16, output_major._FEW, output_major._FEW + 1, 80])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_products_of_few_and_many_tokens(dtype, tokens):
    weight, exact = weights(dtype, random(0, 48, 40))
    x = random(1, tokens, 48).at[0, 3].set(30.0)  # an activation much larger than the others
    matrix = output_major.output_major(weight, 1)
    found = jax.jit(multiply)(x, matrix.rows)
    expected = np.asarray(x, np.float64) @ exact
    assert found.shape == (tokens, 40) and found.dtype == jnp.float32
    error = np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error.max() < TOLERANCES[dtype], error


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_layer_multiplies_its_matrix_like_its_weight(dtype):
    for inputs, shape in ((1, (24, 4, 8)), (2, (4, 6, 16)), (1, (24, 16))):
        weight, _ = weights(dtype, random(2, *shape), inputs)
        x = random(3, 2, 5, *shape[:inputs])
        found = project(x, output_major.output_major(weight, inputs), inputs)
        expected = project(x, weight, inputs)
        assert found.shape == (2, 5, *shape[inputs:]) and found.dtype == x.dtype
        np.testing.assert_allclose(
            found, expected, atol=float(TOLERANCES[dtype] * jnp.abs(expected).max() + 1e-6)
        )


def test_a_token_of_zeros_gives_zeros_with_int8():
    rows = Quantized(jnp.ones((3, 4), jnp.int8), jnp.ones(3))
    np.testing.assert_array_equal(multiply(jnp.zeros((1, 4)), rows), np.zeros((1, 3)))


def test_nan_and_infinity_are_not_hidden_by_int8():
    rows = Quantized(jnp.ones((3, 4), jnp.int8), jnp.ones(3))
    x = jnp.array([[1.0, jnp.nan, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0], [jnp.inf, 0.0, 0.0, 0.0]])
    found = np.asarray(multiply(x, rows))
    assert np.isnan(found[[0, 2]]).all()
    np.testing.assert_allclose(found[1], 4.0, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_narrow_products_of_few_tokens_have_the_form_of_the_library(dtype, tokens):
    # At least two rows on the right, and both operands contract their last axis; benchmarks/generate.py measures
    # the speed.
    weight, _ = weights(dtype, random(0, 64, 128))
    matrix = output_major.output_major(weight, 1)
    lowered = jax.jit(multiply).lower(jnp.ones((tokens, 64)), matrix.rows)
    text = lowered.compile().as_text()
    products = [line for line in text.splitlines() if " dot(" in line]
    assert len(products) == 1, text
    kind = {"bfloat16": "bf16", "int8": "s8"}[dtype]
    result = {"bfloat16": "f32", "int8": "s32"}[dtype]
    rows = max(2, tokens) if dtype == "bfloat16" else 2 * tokens
    assert f"= {result}[128,{rows}]" in products[0], products[0]
    assert f"{kind}[128,64]{{1,0}}" in text


def test_a_matrix_is_a_pytree_with_static_outputs():
    matrix = OutputMajor(jnp.ones((6, 4)), (2, 3))
    doubled = jax.tree.map(lambda array: 2 * array, matrix)
    assert doubled.outputs == (2, 3) and float(doubled.rows[0, 0]) == 2.0
