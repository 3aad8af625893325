"""Rotary positions compared with independent formulas."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from soda_jax.model import RopeConfig, rope


def llama3(frequency: float, factor: float, low: float, high: float, original: float) -> float:
    """Returns one scaled frequency as published for Llama 3.1, with three branches by wavelength."""
    wavelength = 2 * math.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("settings", [(500_000.0, 8.0, 1.0, 4.0, 8192), (100.0, 3.0, 1.0, 2.0, 64)])
def test_llama_3_scaling_is_that_of_the_publication(head_dim, settings):
    theta, *scaling = settings
    plain = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    expected = [llama3(frequency, *scaling) for frequency in plain]
    found = rope.frequencies(head_dim, RopeConfig(theta, *scaling))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # All three branches occur.
    ratio = np.array(expected) / plain
    assert ratio.max() == 1.0 and ratio.min() == pytest.approx(1 / scaling[0])


def test_soda_frequencies_have_their_values():
    found = rope.frequencies(128, RopeConfig())
    assert found.dtype == np.float32 and found.shape == (64,)
    # 500000^(−2i/128); wavelengths below 2048 are unchanged (i ≤ 28), those above 8192 are stretched 8 times.
    expected = {0: 1.0, 28: 500_000 ** (-56 / 128), 35: 500_000 ** (-70 / 128) / 8}
    expected |= {63: 500_000 ** (-126 / 128) / 8}
    for index, value in expected.items():
        assert found[index] == pytest.approx(value, rel=1e-6)
    assert 500_000 ** (-62 / 128) / 8 < found[31] < 500_000 ** (-62 / 128)


def test_factor_one_switches_the_scaling_off():
    found = rope.frequencies(64, RopeConfig(theta=10_000.0, factor=1.0))
    np.testing.assert_allclose(found, 10_000.0 ** (-np.arange(32) / 32), rtol=1e-6)


def test_rotation_is_a_complex_product():
    rng = np.random.default_rng(0)
    settings = RopeConfig(theta=100.0, factor=4.0, original_max_position=32)
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = rng.integers(0, 50, (2, 5)).astype(np.int32)
    found = rope.rotate(jnp.asarray(x), *rope.angles(jnp.asarray(positions), 50, 8, settings))
    turn = np.exp(1j * positions[..., None, None] * rope.frequencies(8, settings).astype(float))
    rotated = (x[..., :4] + 1j * x[..., 4:]) * turn
    np.testing.assert_allclose(found[..., :4], rotated.real, atol=2e-5)
    np.testing.assert_allclose(found[..., 4:], rotated.imag, atol=2e-5)


def test_scores_depend_only_on_the_distance():
    rng = np.random.default_rng(1)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def score(at_query, at_key):
        turned = [
            rope.rotate(x, *rope.angles(jnp.array([[position]]), 32, 16, RopeConfig(theta=100.0)))
            for x, position in ((query, at_query), (key, at_key))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_a_position_outside_the_table_gives_nan():
    cosine, sine = rope.angles(jnp.array([[3, 4]]), 4, 8, RopeConfig())
    assert np.isfinite(cosine[0, 0]).all() and np.isfinite(sine[0, 0]).all()
    assert np.isnan(cosine[0, 1]).all() and np.isnan(sine[0, 1]).all()
