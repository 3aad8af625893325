"""The decoding loop compared with the plain forward pass, and rows with other rows of their batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soda_jax.generate.sampling import GREEDY, Sampling
from soda_jax.tokens.grammar import grammar


@pytest.fixture
def prompts(layout):
    """Returns three legal beginnings of 3, 9 and 25 tokens."""
    texts = [b"a", b"one two", b"turn left then go right"]
    return [np.array([layout.bos, layout.text_start, *text]) for text in texts]


@pytest.fixture(scope="module")
def full_logits(functions, params):
    """Returns a function from the tokens of a document to its logits, computed without a cache."""

    @jax.jit
    def forward(row):
        decoder = functions.bind(params)
        positions = jnp.arange(row.shape[1])[None]
        return decoder.logits(decoder(row, jnp.ones_like(row), positions))[0]

    def logits(tokens):
        row = np.zeros((1, 64), np.int32)  # padding does not change the logits of earlier tokens
        row[0, : len(tokens)] = tokens
        return np.asarray(forward(row))[: len(tokens)]

    return logits


def test_cached_logits_equal_those_of_the_full_forward_pass(
    functions, params, prompts, full_logits
):
    rng = np.random.default_rng(0)
    lengths = np.array([len(p) for p in prompts])
    new = rng.integers(0, 256, (3, 6))
    tokens = np.zeros((3, 32), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    decoder = functions.bind(params)

    @jax.jit
    def step(tokens, positions, cache, lengths):
        hidden, cache = decoder.decode(tokens, positions, cache, lengths)
        return decoder.logits(hidden), cache

    cache = decoder.empty_cache(3, 40)
    positions = np.broadcast_to(np.arange(32), (3, 32))
    logits, cache = step(tokens, positions, cache, np.zeros(3, np.int32))
    seen = [np.asarray(logits)[np.arange(3), lengths - 1]]
    for column in range(new.shape[1]):
        at = lengths + column
        logits, cache = step(new[:, column : column + 1], at[:, None], cache, at)
        seen.append(np.asarray(logits)[:, 0])
    for row, prompt in enumerate(prompts):
        wanted = full_logits(np.concatenate([prompt, new[row]]))
        for column, found in enumerate(seen):
            np.testing.assert_allclose(found[row], wanted[len(prompt) - 1 + column], atol=1e-4)


def test_greedy_takes_the_most_likely_legal_token_of_the_full_forward_pass(
    engine, layout, prompts, full_logits
):
    rules = grammar(layout)
    results = engine(prompts, stop=layout.eos, budget=20, sampling=GREEDY)
    for prompt, result in zip(prompts, results, strict=True):
        whole = np.concatenate([prompt, result.ids])
        logits = full_logits(whole)
        total = 0.0
        for at in range(len(prompt), len(whole)):
            legal = np.where(rules.legal(rules.run(whole[:at])), logits[at - 1], -np.inf)
            assert legal[whole[at]] >= legal.max() - 1e-4
            total += legal[whole[at]] - np.logaddexp.reduce(legal)
        assert result.log_probability == pytest.approx(total, abs=1e-3)


def test_a_row_does_not_depend_on_the_rest_of_its_batch(engine, layout, prompts):
    sampling = Sampling(1.0, 0, 0.9)
    options = {"stop": layout.eos, "budget": 20, "sampling": sampling, "seed": 11}
    three = engine(prompts, **options)
    others = engine([prompts[0], prompts[0], prompts[0]], **options)
    single = engine([prompts[0]], **options)
    np.testing.assert_array_equal(three[0].ids, others[0].ids)
    np.testing.assert_array_equal(three[0].ids, single[0].ids)
    assert not np.array_equal(others[0].ids, others[1].ids), "rows share their draws"


def test_the_draws_depend_on_the_seed(engine, layout, prompts):
    sampling = Sampling(1.0, 0, 0.9)
    options = {"stop": layout.eos, "budget": 20, "sampling": sampling}
    first, again, other = (engine(prompts, seed=seed, **options) for seed in (1, 1, 2))
    for row in range(3):
        np.testing.assert_array_equal(first[row].ids, again[row].ids)
    assert any(not np.array_equal(a.ids, b.ids) for a, b in zip(first, other, strict=True))
