"""Samples the next token from the legal ids, with temperature, top-k and top-p."""

import dataclasses
import functools
import numbers
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from soda_jax.errors import UserError

# Below the first bound, sampling would be greedy; above the second, uniform over the legal tokens.
COLDEST, HOTTEST = 1e-6, 1e6
# The largest logits that are put in order for top-p before the whole vocabulary is.
_ENOUGH = 2048


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    Attributes:
      temperature: divisor of the logits, from `COLDEST` to `HOTTEST`; 0 selects greedy decoding.
      top_k: number of most likely tokens to sample from; 0 samples from all.
      top_p: samples from the smallest set of most likely tokens with at least this total
        probability; 1 samples from all.

    Ties are broken in favor of lower ids.

    Raises:
      UserError: if a value is out of range.
    """

    temperature: float = 0.9
    top_k: int = 0
    top_p: float = 0.8

    def __post_init__(self) -> None:
        temperature, top_k, top_p = self.temperature, self.top_k, self.top_p
        wrong, real = "", _is(temperature, numbers.Real)
        if not (real and (temperature == 0 or COLDEST <= temperature <= HOTTEST)):
            wrong = f"temperature must be from {COLDEST:g} to {HOTTEST:g}, or 0 for greedy decoding"
        elif not (_is(top_k, numbers.Integral) and top_k >= 0):
            wrong = "top_k must be an integer of at least 1, or 0 to draw from all tokens"
        elif not (_is(top_p, numbers.Real) and 0 < top_p <= 1):
            wrong = "top_p must be above 0 and at most 1, which draws from all tokens"
        if wrong:
            raise UserError(f"temperature {temperature}, top_k {top_k}, top_p {top_p}: {wrong}")
        # Equal settings are equal objects, whatever their types were.
        object.__setattr__(self, "temperature", float(temperature))
        object.__setattr__(self, "top_k", int(top_k))
        object.__setattr__(self, "top_p", float(top_p))


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_k", "top_p"],
    meta_fields=["sampled", "ordered"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class RowSampling:
    """The sampling settings of every row of a batch; rows may differ, and share one compiled program.

    Attributes:
      temperature, top_p: f32 `[batch]`.
      top_k: int32 `[batch]`.
      sampled: False if all rows are greedy.
      ordered: how many of the largest logits must be in order for top-k and top-p: 0 none, −1 all.
    """

    temperature: jax.Array | np.ndarray
    top_k: jax.Array | np.ndarray
    top_p: jax.Array | np.ndarray
    sampled: bool
    ordered: int

    @classmethod
    def of(cls, rows: Sequence[Sampling]) -> Self:
        """Returns the settings of a batch."""
        sampled = [row for row in rows if row.temperature > 0]
        largest = max((row.top_k for row in sampled), default=0)
        # A power of two, so that other values of top-k share the program.
        ordered = 1 << (largest - 1).bit_length() if largest else 0
        if any(row.top_p < 1 and not row.top_k for row in sampled):
            ordered = -1
        return cls(
            np.array([row.temperature for row in rows], np.float32),
            np.array([min(row.top_k, 2**31 - 1) for row in rows], np.int32),
            np.array([row.top_p for row in rows], np.float32),
            bool(sampled),
            ordered,
        )


def draw(
    keys: jax.Array, logits: jax.Array, legal: jax.Array, sampling: RowSampling
) -> tuple[jax.Array, jax.Array]:
    """Samples one legal token per row, even if logits are NaN or infinite.

    Args:
      keys: PRNG keys `[batch]`, one per row, so that a token does not depend on the other rows.
      logits: floats `[batch, vocabulary]`; for sampling, NaN and −∞ are replaced by the lowest f32
        and +∞ by the largest.
      legal: bool `[batch, vocabulary]`; each row must contain True.
      sampling: temperature, top-k and top-p, which are applied to the legal tokens.

    Returns:
      tokens, int32 `[batch]`, and their f32 log-probabilities at temperature 1, normalized over the
      legal tokens (NaN if a legal logit is NaN or +∞).
    """
    raw = jnp.where(legal, logits.astype(jnp.float32), -jnp.inf)
    # Make legal logits finite, so that only illegal tokens have −∞.
    lowest = jnp.finfo(jnp.float32).min
    logits = jnp.where(legal, jnp.nan_to_num(raw, nan=lowest, neginf=lowest), -jnp.inf)
    tokens = _first_largest(logits)
    if sampling.sampled:
        greedy = jnp.asarray(sampling.temperature) == 0
        # Rank tokens by unscaled logits, because division by the temperature may create ties.
        kept = _filtered(logits, sampling) if sampling.ordered else logits
        scaled = _scaled(kept, jnp.where(greedy, 1, sampling.temperature))
        tokens = jnp.where(greedy, tokens, jax.vmap(jax.random.categorical)(keys, scaled))
    total = jax.nn.logsumexp(raw, axis=-1)
    chosen = jnp.take_along_axis(raw, tokens[:, None], axis=-1)[:, 0] - total
    return tokens.astype(jnp.int32), jnp.where(jnp.isposinf(total), jnp.nan, chosen)


def _first_largest(logits: jax.Array) -> jax.Array:
    """Returns argmax over the last axis; XLA's own is ten times as slow on a CPU."""
    size = logits.shape[-1]
    largest = logits == logits.max(axis=-1, keepdims=True)
    return jnp.min(jnp.where(largest, jnp.arange(size), size - 1), axis=-1)


def _filtered(logits: jax.Array, sampling: RowSampling) -> jax.Array:
    """Returns logits `[batch, vocabulary]` with −∞ for the tokens that top-k or top-p remove."""
    size = logits.shape[-1]
    if 0 < sampling.ordered < size:
        return _cut(logits, jax.lax.top_k(logits, sampling.ordered)[0], sampling)[0]
    if size <= 2 * _ENOUGH:
        return _cut(logits, jnp.sort(logits, axis=-1, descending=True), sampling)[0]
    # Sorting the whole vocabulary takes far longer than finding its largest logits, which nearly always suffice.
    kept, sure = _cut(logits, jax.lax.top_k(logits, _ENOUGH)[0], sampling)
    return jax.lax.cond(
        sure.all(),
        lambda: kept,
        lambda: _cut(logits, jnp.sort(logits, axis=-1, descending=True), sampling)[0],
    )


def _cut(
    logits: jax.Array, ordered: jax.Array, sampling: RowSampling
) -> tuple[jax.Array, jax.Array]:
    """Applies top-k and top-p.

    Args:
      logits: f32 `[batch, vocabulary]`.
      ordered: f32 `[batch, n]`, the n largest logits in descending order.
      sampling: the settings.

    Returns:
      logits with −∞ for the tokens that are removed, and whether n logits sufficed for a row, bool `[batch]`.
    """
    size, known = logits.shape[-1], ordered.shape[-1]
    temperature = jnp.where(sampling.temperature == 0, 1, sampling.temperature)
    top_k, top_p = jnp.asarray(sampling.top_k)[:, None], jnp.asarray(sampling.top_p)[:, None]
    count = jnp.where(top_k > 0, jnp.minimum(top_k, size), size)
    # The probabilities of the top-k tokens; without top-k, of all tokens.
    first = _scaled(jnp.where(jnp.arange(known) < count, ordered, -jnp.inf), temperature)
    of_all = jax.nn.logsumexp(_scaled(logits, temperature), axis=-1, keepdims=True)
    of_first = jax.nn.logsumexp(first, axis=-1, keepdims=True)
    mass = jnp.cumsum(jnp.exp(first - jnp.where(count < size, of_first, of_all)), axis=-1)
    # Keep tokens up to the first at which the cumulative probability reaches top_p.
    enough = jnp.sum(mass[:, :-1] < top_p, axis=-1, keepdims=True) + 1
    sure = (known == size) | (count <= known) | ((count == size) & (mass[:, -1:] >= top_p))
    count = jnp.where(top_p < 1, jnp.minimum(count, enough), count)
    # Rows that keep everything need no order.
    sure |= (count >= size) | (jnp.asarray(sampling.temperature) == 0)[:, None]
    return jnp.where(count >= size, logits, _keep(logits, ordered, count)), sure[:, 0]


def _scaled(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Returns (logits − maximum) / temperature `[batch]`, which is at most 0 and can only overflow to −∞."""
    return (logits - logits.max(axis=-1, keepdims=True)) / temperature[:, None]


def _keep(logits: jax.Array, ordered: jax.Array, count: jax.Array) -> jax.Array:
    """Replaces all but the `count` largest logits of each row with −∞; ties keep the lower ids.

    Args:
      logits: f32 `[batch, vocabulary]`.
      ordered: f32 `[batch, n]`, the n largest logits in descending order.
      count: int32 `[batch, 1]`; the result of a row with a count above n is not defined.
    """
    last = jnp.minimum(count, ordered.shape[-1]) - 1
    least = jnp.take_along_axis(ordered, last, axis=-1)
    above, equal = logits > least, logits == least
    room = count - above.sum(axis=-1, keepdims=True)
    return jnp.where(above | (equal & (jnp.cumsum(equal, axis=-1) <= room)), logits, -jnp.inf)
