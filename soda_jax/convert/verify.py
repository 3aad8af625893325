"""Compares the logits of a converted model and its source for a short prompt."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.convert.safetensors_folder import DTYPES
from soda_jax.convert.weights import Weights, row_blocks, tables
from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig, rope
from soda_jax.model.attention import attend
from soda_jax.model.decoder import apply_layer, rms_norm
from soda_jax.model.placement import OneDevice

_TOLERANCE = 1e-4  # relative to the standard deviation of the logits


class RoundedWeights(Weights):
    """Rounds weights to another dtype and returns them as f32."""

    def __init__(self, weights: Weights, dtype: str):
        """Wraps `weights`; `dtype` is "float32" (no rounding) or "bfloat16"."""
        self.config, self._weights, self._dtype = weights.config, weights, DTYPES[dtype]

    def read(self, name: str, first: int, last: int) -> np.ndarray:
        """See `Weights`."""
        return self._weights.read(name, first, last).astype(self._dtype).astype(np.float32)


class Logits(NamedTuple):
    """Comparison of the logits of one short prompt before and after a conversion.

    Attributes:
      difference: largest absolute difference.
      deviation: standard deviation of the logits before the conversion.
    """

    difference: float
    deviation: float


def random_prompt(config: DecoderConfig, length: int = 16) -> np.ndarray:
    """Returns the first and the last id of the vocabulary, then random ids, int32 `[length]`."""
    size = config.vocabulary.size
    drawn = np.random.default_rng(0).integers(0, size, max(length - 2, 0))
    return np.concatenate([[0, size - 1], drawn]).astype(np.int32)


def logits(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """Returns the logits at every position of a prompt, computed in f32 `[length, vocabulary]`.

    Args:
      weights: the parameters, read one layer or block of rows at a time.
      tokens: ids of the prompt, int32 `[length]`.
    """
    config = dataclasses.replace(weights.config, compute_dtype="float32")
    with jax.default_matmul_precision("highest"):
        rows = [weights.read("embedding", token, token + 1) for token in tokens.tolist()]
        x = jnp.asarray(np.concatenate(rows))[None]
        for number in range(config.num_layers):
            x = _layer(config, weights.layer(number), x)
        scale = weights.read("final_norm", 0, config.hidden_size)
        x = rms_norm(x, jnp.asarray(scale), config.rms_norm_eps)[0]
        found = np.empty((len(tokens), config.vocabulary.size), np.float32)
        for first, last in row_blocks(config.vocabulary.size):
            found[:, first:last] = x @ weights.read(tables(config)[-1], first, last).T
    return found


@functools.partial(jax.jit, static_argnums=0)
def _layer(config: DecoderConfig, layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    length = x.shape[1]
    positions = jnp.arange(length)[None]
    mask = jnp.tril(jnp.ones((1, length, length), bool))
    return apply_layer(
        layer,
        x,
        config=config,
        angles=rope.angles(positions, length, config.head_dim, config.rope),
        attention=lambda query, key, value: attend(query, key, value, mask),
        placement=OneDevice(),
    )


def logits_of_source(weights: Weights, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits of `random_prompt` with `weights` and with the rounded weights."""
    tokens = random_prompt(weights.config)
    before = logits(weights, tokens)
    if dtype == "float32":
        return before, before
    return before, logits(RoundedWeights(weights, dtype), tokens)


def compare_logits(before: Weights, after: Weights, dtype: str = "float32") -> Logits:
    """Compares the logits of a random prompt before and after a conversion.

    Args:
      before: weights of the source.
      after: weights read from the output.
      dtype: dtype in which `after` is stored.

    Returns:
      the difference of the logits, including the effect of rounding to `dtype`.

    Raises:
      UserError: if the logits of `after` differ from those of `before` with weights rounded to
        `dtype`, or are not finite.
    """
    first, expected = logits_of_source(before, dtype)
    if not np.isfinite(first).all():
        raise UserError(
            "the logits of the source are not finite: some weights are NaN or infinite; take another "
            "checkpoint, or convert it anyway with --verify=tensors"
        )
    found = logits(after, random_prompt(after.config))
    error = float(np.abs(found - expected).max())
    # Multi-threaded matrix products may sum in a different order each time.
    if not error <= _TOLERANCE * float(expected.std()):
        raise UserError(
            f"the converted model computes different logits (by up to {error:.3g}) although its "
            "tensors are correct: config.json or a tensor name is wrong; please report this"
        )
    return Logits(float(np.abs(found - first).max()), float(first.std()))
