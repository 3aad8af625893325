"""Computes the loss of every token of one sequence."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.evaluate.loss import in_float32
from soda_jax.generate.checkpoint import TrainedDecoder

_POSITIONS = 64  # whose logits are in memory at the same time


class TokenLosses:
    """Computes −log p of each token given those before it, over all ids, in f32.

    Sequences are padded to a few lengths, and one program is compiled for each.
    """

    def __init__(self, decoder: TrainedDecoder):
        """Prepares the program for a decoder on one device."""
        self._decoder = in_float32(decoder)
        self._losses = jax.jit(self._computed)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Returns the losses in nats, f32 `[tokens - 1]`, of `ids[1:]`.

        Args:
          ids: int32 `[tokens]`, a beginning of a document, at least 2 tokens.
        """
        length = max(128, 1 << (len(ids) - 1).bit_length())
        tokens = np.zeros((1, length), np.int32)
        tokens[0, : len(ids)] = ids
        found = self._losses(self._decoder.params, tokens)
        return np.asarray(found)[: len(ids) - 1]

    def _computed(self, params: Any, tokens: jax.Array) -> jax.Array:
        decoder = self._decoder.model.bind(params)
        positions = jnp.arange(tokens.shape[1])[None]
        # Padding comes last, and attention is causal, so it changes no earlier position.
        hidden = decoder(
            tokens,
            jnp.ones_like(tokens),
            positions,
            placement=self._decoder.placement,
        )[0]
        targets = jnp.roll(tokens[0], -1)

        def losses(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            vectors, wanted = inputs
            logits = jax.nn.log_softmax(decoder.logits(vectors), axis=-1)
            return -jnp.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]

        split = functools.partial(jnp.reshape, shape=(-1, _POSITIONS))
        parts = (hidden.reshape(-1, _POSITIONS, hidden.shape[-1]), split(targets))
        return jax.lax.map(losses, parts).reshape(-1)
