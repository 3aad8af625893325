import jax
import numpy as np
from test_round_trip import weights_of

from soda_jax.convert.verify import logits, random_prompt
from soda_jax.generate.checkpoint import load_decoder


def test_layerwise_logits_equal_those_of_the_decoder(run):
    weights, _ = weights_of(run)
    decoder = load_decoder(run)
    tokens = random_prompt(weights.config, 12)[None]
    bound = decoder.model.bind(decoder.params)
    positions = np.arange(tokens.shape[1])[None]
    with jax.default_matmul_precision("highest"):
        whole = bound.logits(bound(tokens, np.ones_like(tokens), positions))[0]
    np.testing.assert_allclose(logits(weights, tokens[0]), whole, atol=2e-6)


def test_the_prompt_has_the_first_and_the_last_id(run):
    weights, _ = weights_of(run)
    tokens = random_prompt(weights.config)
    assert {0, weights.config.vocabulary.size - 1} <= set(tokens.tolist())
