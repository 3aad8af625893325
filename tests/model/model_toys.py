"""A decoder of a few thousand parameters, batches for it, and a plain loss to compare with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from toys import SHAPE

from soda_jax.model import DecoderConfig, ModelFunctions, RopeConfig, VocabularyBlocks

# 21 text and marker rows (padded to 24) and codebooks of unequal sizes (padded to 9 rows each).
VOCABULARY = VocabularyBlocks(21, (9, 4, 7))
TINY = DecoderConfig(
    vocabulary=VOCABULARY,
    intermediate_size=24,
    rope=RopeConfig(theta=100.0, factor=1.0),
    **SHAPE,
)


def make_model(**changes) -> ModelFunctions:
    return ModelFunctions(dataclasses.replace(TINY, **changes))


def packed(lengths: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns segment ids and positions `[rows, sequence]` of rows of segments with these lengths."""
    segments = [np.repeat(np.arange(1, len(row) + 1), row) for row in lengths]
    positions = [np.concatenate([np.arange(n) for n in row]) for row in lengths]
    return np.stack(segments).astype(np.int32), np.stack(positions).astype(np.int32)


def random_tokens(seed: int, shape: tuple[int, ...], vocabulary=VOCABULARY) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary.size, shape).astype(np.int32)


def plain_loss(hidden, blocks, valid, target_rows, weights, z_weight):
    """Returns Σ weight · (nll + z · log²Z), nll and log Z, computed with all logits at once."""
    logits = jnp.concatenate(
        [hidden @ block.reshape(-1, block.shape[-1]).T for block in blocks], axis=-1
    )
    logits = jnp.where(valid, logits, -jnp.inf)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nll = log_z - jnp.take_along_axis(logits, target_rows[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (nll + z_weight * log_z**2)), nll, log_z


def assert_trees_close(left, right, rtol: float, atol: float) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)
