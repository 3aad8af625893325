"""Schedules at their corners."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from soda_jax.configs import base
from soda_jax.errors import UserError
from soda_jax.schema import OptimizerConfig, parse, run_config
from soda_jax.train.schedules import Lengths, lengths_of, make_schedule


def values(schedule, *steps):
    return [float(schedule(step)) for step in steps]


def settings(**changes):
    return parse(OptimizerConfig, changes, "optimizer")


def wsd(peak, steps, warmup, decay):
    changes = {"peak_lr": peak, "warmup_fraction": warmup, "decay_fraction": decay}
    return make_schedule(settings(**changes), steps)


def cosine(peak, steps, warmup):
    options = settings(schedule="cosine", peak_lr=peak, warmup_fraction=warmup)
    return make_schedule(options, steps)


def test_wsd_rises_holds_and_falls_at_its_corners():
    schedule = wsd(2.0, 100, 0.10, 0.20)
    found = values(schedule, 0, 5, 10, 11, 79, 80, 81, 90, 99, 100)
    assert found == pytest.approx([0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 1.9, 1.0, 0.1, 0.0])


def test_wsd_of_the_suite_has_the_stages_of_the_paper():
    config = base.suite(
        hidden_size=2048, num_layers=1, intermediate_size=1, num_heads=1, num_kv_heads=1, head_dim=2
    )
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
    schedule = wsd(1.0, 10, warmup, decay)
    assert values(schedule, 0, 5, 9) == pytest.approx(expected)


@pytest.mark.parametrize(("warmup", "decay"), [(0.6, 0.5), (-0.1, 0.2), (0.1, -0.2)])
def test_wsd_whose_stages_overlap_is_refused(warmup, decay):
    with pytest.raises(UserError, match=r"optimizer\.warmup_fraction .* sum must be at most 1"):
        options = OptimizerConfig(warmup_fraction=warmup, decay_fraction=decay)
        make_schedule(options, 10)


def test_cosine_rises_and_falls_by_half_a_cosine():
    schedule = cosine(2.0, 100, 0.04)
    steps = np.array([4, 20, 52, 76, 100])
    expected = 1.0 + np.cos(np.pi * (steps - 4) / 96)
    assert values(schedule, 0, 2) == [0.0, 1.0]
    assert values(schedule, *steps) == pytest.approx(expected.tolist(), abs=1e-6)
    assert values(cosine(2.0, 100, 0.0), 0) == [2.0]


@pytest.mark.parametrize("warmup", [1.0, 1.5, -0.1])
def test_cosine_without_room_is_refused(warmup):
    with pytest.raises(UserError, match=r"optimizer\.warmup"):
        make_schedule(OptimizerConfig(schedule="cosine", warmup_fraction=warmup), 10)


def test_the_config_chooses_the_schedule():
    assert values(make_schedule(settings(), 100), 50) == [pytest.approx(3e-3)]
    assert values(cosine(3e-3, 100, 0.0), 50) == [pytest.approx(1.5e-3)]


@pytest.mark.parametrize("steps", [10, 97, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.1])
def test_schedules_are_those_of_optax(steps, warmup):
    rise, fall = round(warmup * steps), round(0.2 * steps)
    parts = [
        optax.linear_schedule(0.0, 0.7, rise), lambda step: 0.7, optax.linear_schedule(0.7, 0.0, fall)
    ]  # fmt: skip
    expected = {
        "wsd": optax.join_schedules(parts, [rise, steps - fall]),
        "cosine": optax.warmup_cosine_decay_schedule(0.0, 0.7, rise, steps),
    }
    found = {"wsd": wsd(0.7, steps, warmup, 0.2), "cosine": cosine(0.7, steps, warmup)}
    every = np.arange(steps + 1)
    for name, schedule in found.items():
        np.testing.assert_allclose(
            jax.vmap(schedule)(every), jax.vmap(expected[name])(every), atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("name", ["wsd", "cosine"])
def test_lengths_may_be_data_of_a_compiled_function(name):
    options = settings(schedule=name)
    traces = []

    @jax.jit
    def rate(step, peak, lengths):
        traces.append(1)
        return make_schedule(dataclasses.replace(options, peak_lr=peak), lengths)(step)

    for steps in (50, 400):
        lengths = Lengths(*map(np.int32, lengths_of(options, steps)))
        for step in (1, 20, 45):
            found = rate(step, np.float32(3e-3), lengths)
            assert float(found) == pytest.approx(float(make_schedule(options, steps)(step)))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "optimizer.schedule = 'linear' must be one of wsd, cosine"),
        ({"peak_lr": 0.0}, "optimizer.peak_lr = 0.0 must be a number, above 0"),
        ({"peak_lr": -1.0}, "optimizer.peak_lr"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(UserError) as error:
        settings(**changes)
    assert message in str(error.value)


def test_a_run_without_steps_is_refused():
    with pytest.raises(UserError, match="steps = 0 must be an integer, at least 1"):
        run_config({"steps": 0})
