import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soda_jax.errors import UserError
from soda_jax.generate.sampling import COLDEST, GREEDY, HOTTEST, RowSampling, Sampling, draw

LOGITS = np.log([0.05, 0.4, 0.25, 0.2, 0.1]).astype(np.float32)
MANY = 4000


def drawn(sampling, legal=(True,) * 5, logits=LOGITS):
    """Returns the frequency of each token in many draws, the tokens and their log-probabilities."""
    keys = jax.random.split(jax.random.key(0), MANY)
    rows = jnp.broadcast_to(jnp.asarray(logits), (MANY, 5))
    mask = jnp.broadcast_to(jnp.asarray(legal), (MANY, 5))
    tokens, scores = draw(keys, rows, mask, RowSampling.of([sampling] * MANY))
    return np.bincount(tokens, minlength=5) / MANY, np.asarray(tokens), np.asarray(scores)


def test_temperature_0_takes_the_most_likely_legal_token():
    shares, _, scores = drawn(GREEDY, legal=(True, False, True, True, True))
    assert shares[2] == 1
    np.testing.assert_allclose(scores, np.log(0.25 / 0.6), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature):
    shares, _, _ = drawn(Sampling(temperature, 0, 1.0))
    wanted = np.exp(LOGITS / temperature)
    np.testing.assert_allclose(shares, wanted / wanted.sum(), atol=0.03)


def test_top_k_keeps_the_k_most_likely_legal_tokens():
    shares, _, _ = drawn(Sampling(1.0, 2, 1.0), legal=(True, False, True, True, True))
    np.testing.assert_allclose(shares, [0, 0, 0.25 / 0.45, 0.2 / 0.45, 0], atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [1]), (0.5, [1, 2]), (0.66, [1, 2, 3]), (0.99, [0, 1, 2, 3, 4])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    shares, _, _ = drawn(Sampling(1.0, 0, top_p))
    assert np.flatnonzero(shares).tolist() == kept


def test_top_p_is_applied_to_legal_tokens_only():
    shares, _, _ = drawn(Sampling(1.0, 0, 0.5), legal=(True, False, True, True, True))
    assert np.flatnonzero(shares).tolist() == [2, 3]


def test_a_likely_illegal_token_is_never_drawn():
    logits = np.array([0, 50, 0, 0, 0], np.float32)
    for sampling in (GREEDY, Sampling(10.0, 3, 1.0), Sampling(1.0, 0, 0.01)):
        shares, _, scores = drawn(sampling, (True, False, True, True, True), logits)
        assert shares[1] == 0
        np.testing.assert_allclose(scores, np.log(0.25), rtol=1e-5)


def test_scores_are_log_probabilities_at_temperature_1_among_the_legal():
    _, tokens, scores = drawn(Sampling(3.0, 4, 0.9))
    np.testing.assert_allclose(scores, LOGITS[tokens], rtol=1e-5)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "values",
    [
        *[
            (t, 0, 1)
            for t in (-1, NAN, INF, -INF, 1e30, 1e7, 1e-7, 1e-39, 10**400, "1", None, True)
        ],
        *[(1, k, 1) for k in (-1, 2.5, NAN, "3", None, True)],
        *[(1, 0, p) for p in (0, -0.0, -0.5, 1.1, NAN, INF, "1", None, True)],
    ],
)
def test_values_out_of_range_are_rejected_in_one_line(values):
    with pytest.raises(UserError, match=r"temperature .*, top_k .*, top_p .*: .* must be") as error:
        Sampling(*values)
    assert "\n" not in str(error.value)


def test_equal_settings_of_any_number_types_are_equal_keys():
    found = Sampling(np.float32(0.5), np.int64(3), 1)
    assert found == Sampling(0.5, 3, 1.0) and hash(found) == hash(Sampling(0.5, 3, 1.0))
    assert [type(value) for value in dataclasses.astuple(found)] == [float, int, float]
    assert Sampling(-0.0, 0, 1.0) == GREEDY


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_top_k_keeps_exactly_k_tokens_and_the_lowest_of_equally_likely_ids(top_k):
    # Ids 1 and 3 are the most likely, then the equally likely 0, 2 and 4 in this order. −0 equals 0.
    logits = np.array([0.0, 1.0, -0.0, 1.0, 0.0], np.float32)
    shares, _, _ = drawn(Sampling(1.0, top_k, 1.0), logits=logits)
    assert np.flatnonzero(shares).tolist() == sorted([1, 3, 0, 2][:top_k])


@pytest.mark.parametrize(("top_p", "kept"), [(0.2, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.76, 4)])
def test_top_p_keeps_only_as_many_equally_likely_tokens_as_it_needs(top_p, kept):
    shares, _, _ = drawn(Sampling(1.0, 0, top_p), (False, True, True, True, True), np.zeros(5))
    assert np.flatnonzero(shares).tolist() == [1, 2, 3, 4][:kept]


def test_top_k_ranks_logits_that_the_temperature_makes_equal():
    # In f32 they have the same difference from 100, and they are not equal.
    logits = np.array([1e-9, 3e-9, 2e-9, 100.0, -5.0], np.float32)
    shares, _, _ = drawn(Sampling(1e6, 3, 1.0), logits=logits)
    assert np.flatnonzero(shares).tolist() == [1, 2, 3]


def test_a_temperature_at_its_bounds_is_greedy_or_uniform_over_the_legal():
    legal = (True, False, True, True, True)
    shares, _, _ = drawn(Sampling(COLDEST, 0, 1.0), legal)
    assert shares[2] == 1
    shares, _, _ = drawn(Sampling(HOTTEST, 0, 1.0), legal)
    np.testing.assert_allclose(shares, [0.25, 0, 0.25, 0.25, 0.25], atol=0.03)


VOCABULARY, REPEATS = 37, 24
ROWS = (
    "normal",
    "equal",
    "few values",
    "zeros of both signs",
    "huge",
    "infinite",
    "NaN",
    "all -inf",
)


def extreme_logits(kind, rng):
    values = rng.normal(size=VOCABULARY)
    match kind:
        case "equal":
            values[:] = -3.0
        case "few values":
            values = np.round(values)
        case "zeros of both signs":
            values = np.where(rng.random(VOCABULARY) < 0.5, 0.0, -0.0)
        case "huge":
            values = np.sign(values) * 3e38
        case "infinite":
            values = np.where(rng.random(VOCABULARY) < 0.5, np.inf, -np.inf)
        case "NaN":
            values[rng.random(VOCABULARY) < 0.5] = np.nan
        case "all -inf":
            values[:] = -np.inf
    return values.astype(np.float32)


def allowed(logits, legal, sampling):
    """Returns the ids that may be drawn by the definitions, in f64, with a rounding margin for top_p."""
    largest = float(np.finfo(np.float32).max)
    logits = np.nan_to_num(logits.astype(float), nan=-largest, posinf=largest, neginf=-largest)
    order = sorted(np.flatnonzero(legal), key=lambda i: (-logits[i], i))
    if sampling.temperature == 0:
        return set(order[:1])
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = np.exp((logits[order] - logits[order[0]]) / sampling.temperature)
    mass = np.cumsum(weights / weights.sum())
    return set(order[: 1 + int((mass[:-1] < sampling.top_p + 1e-6).sum())])


def random_sampling(rng):
    return Sampling(
        rng.choice([0.0, COLDEST, 1e-3, 0.9, 1.0, 1e3, HOTTEST]),
        rng.choice([0, 1, 2, 7, VOCABULARY, 10**9]),
        rng.choice([1e-45, 0.1, 0.5, 0.999999, 1.0]),
    )


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("seed", range(8))
def test_invariant_9_any_setting_and_any_logits_draw_what_the_definitions_allow(seed, kind):
    rng = np.random.default_rng(seed)
    sampling = random_sampling(rng)
    logits = np.array([extreme_logits(row, rng) for row in ROWS])
    logits = np.asarray(jnp.asarray(logits, kind), np.float32)
    legal = rng.random(logits.shape) < rng.choice([0.05, 0.5, 1.0], (len(ROWS), 1))
    legal[np.arange(len(ROWS)), rng.integers(0, VOCABULARY, len(ROWS))] = True
    keys = jax.random.split(jax.random.key(seed), REPEATS * len(ROWS))
    repeated = [np.repeat(x, REPEATS, axis=0) for x in (logits, legal)]
    settings = RowSampling.of([sampling] * len(keys))
    tokens, scores = draw(keys, jnp.asarray(repeated[0], kind), jnp.asarray(repeated[1]), settings)
    assert scores.dtype == jnp.float32
    for number, found in enumerate(np.asarray(tokens).reshape(len(ROWS), REPEATS)):
        wanted = allowed(logits[number], legal[number], sampling)
        assert set(found.tolist()) <= wanted, (ROWS[number], sampling)


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_top_p_of_a_large_vocabulary_equals_a_full_sort(spread, monkeypatch):
    """With a small spread the largest logits have too little probability, so all are sorted."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(spread * rng.normal(size=(24, 5000)), jnp.float32)
    legal = jnp.asarray(rng.random((24, 5000)) < 0.9)
    settings = [Sampling(0.9, 0, 0.8), Sampling(1.0, 0, 1.0), Sampling(1.2, 40, 0.9), GREEDY,
                Sampling(1.0, 3000, 0.99), Sampling(1.0, 3000, 1.0)] * 4  # fmt: skip
    keys = jax.random.split(jax.random.key(0), 24)
    large, scores = draw(keys, logits, legal, RowSampling.of(settings))
    monkeypatch.setattr("soda_jax.generate.sampling._ENOUGH", 5000)
    sorted_, expected = draw(keys, logits, legal, RowSampling.of(settings))
    np.testing.assert_array_equal(large, sorted_)
    np.testing.assert_array_equal(scores, expected)


def test_rows_with_different_settings_are_drawn_as_alone():
    rng = np.random.default_rng(0)
    settings = [
        GREEDY, Sampling(0.7, 0, 0.8), Sampling(1.3, 3, 1.0), Sampling(1.0, 5, 0.5), Sampling(2.0, 0, 1.0),
        Sampling(0.5, 1000, 0.9),
    ]  # fmt: skip
    logits = jnp.asarray(rng.normal(size=(600, 50)), jnp.float32)
    legal = jnp.asarray(rng.random((600, 50)) < 0.7).at[:, 0].set(True)
    keys = jax.random.split(jax.random.key(1), 600)
    rows = [settings[n % len(settings)] for n in range(600)]
    together, scores = draw(keys, logits, legal, RowSampling.of(rows))
    for number, sampling in enumerate(settings):
        mine = slice(number, None, len(settings))
        alone, their_scores = draw(
            keys[mine], logits[mine], legal[mine], RowSampling.of([sampling] * 100)
        )
        np.testing.assert_array_equal(together[mine], alone)
        np.testing.assert_array_equal(scores[mine], their_scores)
