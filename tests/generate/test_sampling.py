import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soda_jax.errors import UserError
from soda_jax.generate.sampling import GREEDY, Sampling, draw

LOGITS = np.log([0.05, 0.4, 0.25, 0.2, 0.1]).astype(np.float32)
MANY = 4000


def drawn(sampling, legal=(True,) * 5, logits=LOGITS):
    """Share of each token among many draws, and the log-probabilities."""
    keys = jax.random.split(jax.random.key(0), MANY)
    rows = jnp.broadcast_to(jnp.asarray(logits), (MANY, 5))
    mask = jnp.broadcast_to(jnp.asarray(legal), (MANY, 5))
    tokens, scores = draw(keys, rows, mask, sampling)
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


def test_top_p_looks_at_legal_tokens_only():
    shares, _, _ = drawn(Sampling(1.0, 0, 0.5), legal=(True, False, True, True, True))
    assert np.flatnonzero(shares).tolist() == [2, 3]


def test_an_illegal_token_is_never_drawn_however_likely():
    logits = np.array([0, 50, 0, 0, 0], np.float32)
    for sampling in (GREEDY, Sampling(10.0, 3, 1.0), Sampling(1.0, 0, 0.01)):
        shares, _, scores = drawn(sampling, (True, False, True, True, True), logits)
        assert shares[1] == 0
        np.testing.assert_allclose(scores, np.log(0.25), rtol=1e-5)


def test_scores_are_log_probabilities_at_temperature_1_among_the_legal():
    _, tokens, scores = drawn(Sampling(3.0, 4, 0.9))
    np.testing.assert_allclose(scores, LOGITS[tokens], rtol=1e-5)


@pytest.mark.parametrize(
    "values", [(-1, 0, 1), (float("nan"), 0, 1), (1, -1, 1), (1, 0, 0), (1, 0, 1.1)]
)
def test_values_out_of_range_are_refused(values):
    with pytest.raises(UserError, match="top_p"):
        Sampling(*values)
