"""Approach 2, its warnings, and the estimate of its bias."""

import dataclasses

import numpy as np
import pytest
from laws import LAWS, planted

from soda_jax.scaling.bias import approach2_bias, drift_warning, flops_law
from soda_jax.scaling.grid import plan_runs
from soda_jax.scaling.parabola import fit_parabolas
from soda_jax.scaling.rules import BUDGETS, soda
from soda_jax.scaling.runs import Runs


def fit(runs):
    return fit_parabolas(runs.budget, runs.params, runs.tokens, runs.loss)


def test_exact_parabolas_give_exact_exponents():
    runs = planted(LAWS[0])
    n_star, d_star = 1e8 * (runs.budget / 1e18) ** 0.4, 1e9 * (runs.budget / 1e18) ** 0.6
    tokens = d_star * n_star / runs.params  # C ∝ ND, so both parabolas are exact
    loss = 2 + 0.05 * np.log(runs.params / n_star) ** 2
    found = fit_parabolas(runs.budget, runs.params, tokens, loss)
    assert found.params.exponent == pytest.approx(0.4)
    assert found.tokens.exponent == pytest.approx(0.6)
    assert found.params.at(1e19) == pytest.approx(1e8 * 10**0.4)
    minima = [one.minimum for one in found.by_params]
    np.testing.assert_allclose(minima, np.unique(n_star), rtol=1e-6)


def test_a_budget_with_two_runs_gives_no_result_but_the_reason():
    runs = planted(LAWS[0])
    chosen = np.ones(len(runs), bool)
    chosen[2:9] = False
    found = fit(runs.take(chosen))
    assert found.params is None and found.to_json() is None
    assert "budget 1e+18 has 2 runs" in found.reason


def test_runs_of_two_sizes_are_not_called_two_runs_and_many_budgets_are_counted():
    runs = planted(LAWS[0], budgets=20)
    params = np.where(runs.params < np.median(runs.params), 1e8, 2e8)
    found = fit(dataclasses.replace(runs, params=params))
    assert "1e+18 has 2 sizes;" in found.reason and "and 12 others" in found.reason


def test_a_parabola_that_opens_downward_is_left_out_and_named():
    runs = planted(LAWS[0])
    loss = np.where(runs.budget == runs.budget[0], 8 - runs.loss, runs.loss)
    found = fit(dataclasses.replace(runs, loss=loss))
    assert any("1e+18: the parabola in log N opens downward" in line for line in found.warnings)
    assert found.to_json()["optima"][0]["params"] is None
    rest = fit(runs.take(runs.budget > runs.budget[0]))
    assert found.params.exponent == pytest.approx(rest.params.exponent)
    upside_down = fit(dataclasses.replace(runs, loss=8 - runs.loss))
    assert upside_down.params is None and "fewer than two budgets" in upside_down.reason


def test_a_minimum_outside_the_tried_sizes_is_named():
    runs = planted(LAWS[0])
    best = LAWS[0].optimum(runs.budget / 6)[0]
    found = fit(runs.take((runs.budget > runs.budget[0]) | (runs.params > 1.2 * best)))
    assert any("1e+18" in line and "outside the tried" in line for line in found.warnings)


def test_bias_is_the_error_on_noise_free_losses():
    law = LAWS[2]
    runs = planted(law, drift=1.3)
    bias, found, (a, b) = approach2_bias(law, runs), fit(runs), law.exponents()
    assert bias["a"] == pytest.approx(found.params.exponent - a)
    assert bias["b"] == pytest.approx(found.tokens.exponent - b)
    assert bias["tokens_factor"] == pytest.approx(
        found.tokens.at(1e21) / law.optimum(1e21 / 6)[1], rel=1e-6
    )
    assert abs(bias["a"]) > 0.003


def test_a_drifting_grid_is_named_and_a_centered_one_is_not():
    law = LAWS[0]
    assert drift_warning(law, planted(law)) == ""
    assert "the grid drifts" in drift_warning(law, planted(law, drift=1.2))
    assert "the grid drifts" in drift_warning(law, planted(law, drift=0.8))


def test_flops_follow_the_table_and_not_6nd():
    runs = planted(LAWS[0])
    assert flops_law(runs) == pytest.approx((6, 1))
    other = dataclasses.replace(runs, tokens=runs.budget / (40 * runs.params**0.9))
    assert flops_law(other) == pytest.approx((40, 0.9))


def test_the_published_surface_gives_the_papers_exponents_on_the_papers_flops():
    law = LAWS[2]
    rows = [run.row() for run in plan_runs(soda(), BUDGETS, 144_644, 4096).runs]
    budget, params, tokens = (
        np.array([float(row[name]) for row in rows])
        for name in ("budget", "params_total", "tokens")
    )
    runs = Runs(budget, params, tokens, law.loss(params, tokens), {}, {})
    assert law.exponents() == pytest.approx((0.391, 0.609), abs=1e-3)
    assert law.exponents(flops_law(runs)[1]) == pytest.approx((0.367, 0.579), abs=5e-3)
    bias = approach2_bias(law, runs)
    assert bias["params_factor"] > 1.05 and bias["tokens_factor"] < 0.95
