"""Variable projection and approach 3 on planted laws."""

import numpy as np
import pytest
from laws import LAWS, planted
from scipy.optimize import nnls

from soda_jax.scaling.log_sum_exp import all_starts, fit_log_sum_exp
from soda_jax.scaling.surface import Surface, _non_negative, fit_surface, fit_surfaces, huber

NAMES = ("alpha", "beta", "E", "A", "B")


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("fit", [fit_surface, fit_log_sum_exp])
@pytest.mark.parametrize("drift", [1, 1.3])
def test_planted_laws_are_recovered_without_noise(law, fit, drift):
    runs = planted(law, drift=drift)
    found = fit(runs.params, runs.tokens, runs.loss)
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-4)
    assert found.huber < 1e-15


def test_a_law_without_an_irreducible_loss_has_none():
    law = Surface(0.2, 0.9, 0.0, 3.0, 0.2)
    runs = planted(law)
    found = fit_surface(runs.params, runs.tokens, runs.loss)
    assert abs(found.E) < 1e-8 and found.alpha == pytest.approx(0.2, rel=1e-6)


def test_coefficients_are_never_negative():
    runs = planted(LAWS[0], noise=0.3, seed=3)
    found = fit_surface(runs.params, runs.tokens, 10 - runs.loss)  # losses that rise
    assert min(found.E, found.A, found.B) >= 0


def test_non_negative_least_squares_agree_with_scipy():
    random = np.random.default_rng(0)
    columns = random.standard_normal((200, 3, 8))
    values = random.standard_normal((200, 8))
    gram = columns @ columns.transpose(0, 2, 1)
    found, _ = _non_negative(gram, np.einsum("pir,pr->pi", columns, values))
    expected = [nnls(one.T, value)[0] for one, value in zip(columns, values, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-10)
    assert (found == 0).any(1).mean() > 0.5


def test_the_fit_is_no_worse_than_a_search_by_another_method():
    from scipy.optimize import minimize

    runs = planted(LAWS[0], noise=0.01)

    def objective(logs):
        surface = Surface(*np.exp(logs))
        return 1e6 * huber(runs.loss - surface.loss(runs.params, runs.tokens)).mean()

    found = fit_surface(runs.params, runs.tokens, runs.loss)
    start = np.log([getattr(found, name) for name in NAMES])
    options = {"maxiter": 4000, "xatol": 1e-8, "fatol": 1e-10}
    other = minimize(objective, start, method="Nelder-Mead", options=options)
    assert 1e6 * found.huber <= other.fun * (1 + 1e-5)


def test_huber_is_in_nats():
    np.testing.assert_allclose(huber(np.array([5e-4, -2e-3])), [1.25e-7, 1.5e-6])


def test_draws_with_equal_weights_repeat_the_fit():
    runs = planted(LAWS[0], noise=0.01)
    found = fit_surface(runs.params, runs.tokens, runs.loss)
    losses = np.stack([runs.loss] * 2)
    draws = fit_surfaces(runs.params, runs.tokens, losses, np.full(losses.shape, 3.0), found)
    np.testing.assert_allclose(draws, [[getattr(found, name) for name in NAMES]] * 2, rtol=2e-3)


def test_the_optimum_has_the_lowest_loss_of_its_curve():
    law, power = LAWS[2], 0.8
    params, tokens = law.optimum(1e17, power)
    assert params**power * tokens == pytest.approx(1e17)
    near = params * np.array([0.98, 1, 1.02])
    losses = law.loss(near, 1e17 / near**power)
    assert losses.argmin() == 1
    a, b = law.exponents(power)
    assert law.optimum(1e18, power)[0] / params == pytest.approx(10**a)
    assert law.optimum(1e18, power)[1] / tokens == pytest.approx(10**b)


def test_there_are_4500_starts():
    assert all_starts().shape == (4500, 5)
