"""The logits of a short prompt with one layer in memory at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.convert.weights import Weights, row_blocks, tables
from soda_jax.model import DecoderConfig, rope
from soda_jax.model.attention import attend
from soda_jax.model.decoder import apply_layer, rms_norm
from soda_jax.model.placement import OneDevice


def prompt(config: DecoderConfig, length: int = 16, seed: int = 0) -> np.ndarray:
    """Ids `[length]` drawn from all of the vocabulary, the first and the last id among them."""
    size = config.vocabulary.size
    drawn = np.random.default_rng(seed).integers(0, size, max(length - 2, 0))
    return np.concatenate([[0, size - 1], drawn]).astype(np.int32)


def logits(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """Logits of every position of a prompt, f32 `[length, vocabulary]`, computed in f32.

    Args:
      weights: read once, a layer and a block of rows at a time.
      tokens: int32 `[length]`.
    """
    config = dataclasses.replace(weights.config, compute_dtype="float32")
    with jax.default_matmul_precision("highest"):
        rows = [weights.rows("embedding", token, token + 1) for token in tokens.tolist()]
        x = jnp.asarray(np.concatenate(rows))[None]
        for number in range(config.num_layers):
            x = _layer(config, weights.layer(number), x)
        x = rms_norm(x, jnp.asarray(weights.final_norm()), config.rms_norm_eps)[0]
        found = np.empty((len(tokens), config.vocabulary.size), np.float32)
        for first, last in row_blocks(config.vocabulary.size):
            found[:, first:last] = x @ weights.rows(tables(config)[-1], first, last).T
    return found


@functools.partial(jax.jit, static_argnums=0)
def _layer(config: DecoderConfig, layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    length = x.shape[1]
    positions = jnp.arange(length)[None]
    mask = jnp.tril(jnp.ones((1, length, length), bool))
    y, _ = apply_layer(
        layer,
        x,
        config=config,
        angles=rope.angles(positions, length, config.head_dim, config.rope),
        attention=lambda query, key, value: attend(query, key, value, mask),
        placement=OneDevice(),
    )
    return y
