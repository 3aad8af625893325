"""Schedules at their corners."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from soda_jax.configs import base
from soda_jax.errors import UserError
from soda_jax.train.schedules import make_schedule, warmup_cosine, warmup_stable_decay


def values(schedule, *steps):
    return [float(schedule(step)) for step in steps]


def test_wsd_rises_holds_and_falls_at_its_corners():
    schedule = warmup_stable_decay(2.0, 100, warmup=0.10, decay=0.20)
    found = values(schedule, 0, 5, 10, 11, 79, 80, 81, 90, 99, 100)
    assert found == pytest.approx([0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 1.9, 1.0, 0.1, 0.0])


def test_wsd_of_the_suite_has_the_stages_of_the_paper():
    config = base.suite(width=2048, layers=1, mlp_width=1, heads=1, kv_heads=1, head_dim=2)
    schedule = make_schedule(config.optimizer, config.steps)
    rise, fall = round(0.1 * 238_419), round(0.2 * 238_419)
    found = values(schedule, rise // 2, rise, 238_419 - fall, 238_419 - fall // 2, 238_418)
    expected = [0.0015, 0.003, 0.003, 0.0015, 0.003 / fall]
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("warmup", "decay", "expected"),
    [(0.0, 0.0, [1.0, 1.0, 1.0]), (0.0, 1.0, [1.0, 0.5, 0.1]), (1.0, 0.0, [0.0, 0.5, 0.9])],
)
def test_wsd_without_a_stage(warmup, decay, expected):
    schedule = warmup_stable_decay(1.0, 10, warmup=warmup, decay=decay)
    assert values(schedule, 0, 5, 9) == pytest.approx(expected)


@pytest.mark.parametrize(("warmup", "decay"), [(0.6, 0.5), (-0.1, 0.2), (0.1, -0.2)])
def test_wsd_whose_stages_overlap_is_refused(warmup, decay):
    with pytest.raises(UserError, match=r"optimizer\.warmup .* must be shares of one run"):
        warmup_stable_decay(1.0, 10, warmup=warmup, decay=decay)


def test_cosine_rises_and_falls_by_half_a_cosine():
    schedule = warmup_cosine(2.0, 100, warmup=0.04)
    steps = np.array([4, 20, 52, 76, 100])
    expected = 1.0 + np.cos(np.pi * (steps - 4) / 96)
    assert values(schedule, 0, 2) == [0.0, 1.0]
    assert values(schedule, *steps) == pytest.approx(expected.tolist(), abs=1e-6)
    assert values(warmup_cosine(2.0, 100, warmup=0.0), 0) == [2.0]


@pytest.mark.parametrize("warmup", [1.0, 1.5, -0.1])
def test_cosine_without_room_is_refused(warmup):
    with pytest.raises(UserError, match=r"optimizer\.warmup"):
        warmup_cosine(1.0, 10, warmup=warmup)


def settings(**changes):
    return ConfigDict({**base.default().optimizer.to_dict(), **changes})


def test_the_config_chooses_the_schedule():
    assert values(make_schedule(settings(), 100), 50) == [pytest.approx(3e-3)]
    cosine = make_schedule(settings(schedule="cosine", warmup=0.0), 100)
    assert values(cosine, 50) == [pytest.approx(1.5e-3)]


@pytest.mark.parametrize(
    ("changes", "steps", "told"),
    [
        ({"schedule": "linear"}, 10, "optimizer.schedule = 'linear' is unknown: wsd, cosine"),
        ({"peak": 0.0}, 10, "optimizer.peak = 0.0 must be above 0"),
        ({"peak": -1.0}, 10, "optimizer.peak"),
        ({}, 0, "steps = 0 must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(changes, steps, told):
    with pytest.raises(UserError) as error:
        make_schedule(settings(**changes), steps)
    assert told in str(error.value)
