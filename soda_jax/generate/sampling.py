"""Samples the next token from the legal ids, with temperature, top-k and top-p."""

import dataclasses
import numbers

import jax
import jax.numpy as jnp

from soda_jax.errors import UserError

# Below the first bound, sampling would be greedy; above the second, uniform over the legal tokens.
COLDEST, HOTTEST = 1e-6, 1e6


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
        # `Sampling` is a static argument of the jitted loop; with Python numbers, equal settings
        # share one compiled program.
        object.__setattr__(self, "temperature", float(temperature))
        object.__setattr__(self, "top_k", int(top_k))
        object.__setattr__(self, "top_p", float(top_p))


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0)


def draw(
    keys: jax.Array, logits: jax.Array, legal: jax.Array, sampling: Sampling
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
    logits = logits.astype(jnp.float32)
    log_probabilities = jax.nn.log_softmax(jnp.where(legal, logits, -jnp.inf))
    # Make legal logits finite, so that only illegal tokens have −∞.
    logits = jnp.nan_to_num(logits, nan=jnp.finfo(jnp.float32).min)
    logits = jnp.where(legal, logits, -jnp.inf)
    if sampling.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1)
    else:
        # Rank tokens by unscaled logits, because division by the temperature may create ties.
        if 0 < sampling.top_k < logits.shape[-1]:
            largest = jax.lax.top_k(logits, sampling.top_k)[0]
            logits = _keep(logits, largest, sampling.top_k)
        if sampling.top_p < 1:
            ordered = jnp.sort(logits, axis=-1, descending=True)
            mass = jnp.cumsum(jax.nn.softmax(_scaled(ordered, sampling.temperature)), axis=-1)
            # Keep tokens up to the first at which the cumulative probability reaches top_p.
            count = jnp.sum(mass[:, :-1] < sampling.top_p, axis=-1, keepdims=True) + 1
            logits = _keep(logits, ordered, count)
        tokens = jax.vmap(jax.random.categorical)(keys, _scaled(logits, sampling.temperature))
    chosen = jnp.take_along_axis(log_probabilities, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen


def _scaled(logits: jax.Array, temperature: float) -> jax.Array:
    """Returns (logits − maximum) / temperature, which is at most 0 and can only overflow to −∞."""
    return (logits - logits.max(axis=-1, keepdims=True)) / temperature


def _keep(logits: jax.Array, ordered: jax.Array, count: jax.Array | int) -> jax.Array:
    """Replaces all but the `count` largest logits of each row with −∞; ties keep the lower ids.

    Args:
      logits: f32 `[batch, vocabulary]`.
      ordered: f32 `[batch, n]`, the n ≥ `count` largest logits in descending order.
      count: an int, or int32 `[batch, 1]`.
    """
    last = jnp.broadcast_to(jnp.asarray(count) - 1, (len(logits), 1))
    least = jnp.take_along_axis(ordered, last, axis=-1)
    above, equal = logits > least, logits == least
    room = count - above.sum(axis=-1, keepdims=True)
    return jnp.where(above | (equal & (jnp.cumsum(equal, axis=-1) <= room)), logits, -jnp.inf)
