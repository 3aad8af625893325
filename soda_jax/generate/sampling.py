"""Drawing the next token: temperature, top-k and top-p, among legal ids only."""

import dataclasses
import numbers

import jax
import jax.numpy as jnp

from soda_jax.errors import UserError

# Beyond these bounds a draw would be greedy, or uniform over the legal tokens.
COLDEST, HOTTEST = 1e-6, 1e6


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      temperature: divides the logits, from `COLDEST` to `HOTTEST`; 0 takes the most likely token.
      top_k: keep that many of the most likely tokens; 0 keeps all.
      top_p: keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all.

    Of equally likely tokens those with the lowest ids are kept or taken first.

    Raises:
      UserError: for values out of range.
    """

    temperature: float = 0.9
    top_k: int = 0
    top_p: float = 0.8

    def __post_init__(self) -> None:
        temperature, top_k, top_p = self.temperature, self.top_k, self.top_p
        wrong = ""
        if not (
            _is(temperature, numbers.Real)
            and (temperature == 0 or COLDEST <= temperature <= HOTTEST)
        ):
            wrong = f"temperature must be from {COLDEST:g} to {HOTTEST:g}, or 0 for greedy decoding"
        elif not (_is(top_k, numbers.Integral) and top_k >= 0):
            wrong = "top_k must be an integer of at least 1, or 0 to keep all tokens"
        elif not (_is(top_p, numbers.Real) and 0 < top_p <= 1):
            wrong = "top_p must be above 0 and at most 1, which keeps all tokens"
        if wrong:
            raise UserError(f"temperature {temperature}, top_k {top_k}, top_p {top_p}: {wrong}")
        # Equal settings must be one key of the compiled loop, whatever number types they are given in.
        object.__setattr__(self, "temperature", float(temperature))
        object.__setattr__(self, "top_k", int(top_k))
        object.__setattr__(self, "top_p", float(top_p))


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0)


def draw(
    keys: jax.Array, logits: jax.Array, legal: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row; it is legal whatever the logits are.

    Args:
      keys: PRNG keys `[batch]`, one a row, so that a row's draw does not depend on its batch.
      logits: floats `[batch, vocabulary]`; NaN counts as the lowest logit, ±∞ as the largest numbers.
      legal: bool `[batch, vocabulary]`; at least one True a row.
      sampling: temperature, top-k, top-p; the latter two look at legal tokens only.

    Returns:
      tokens int32 `[batch]` and their log-probability among the legal ones at temperature 1, f32.
    """
    logits = logits.astype(jnp.float32)
    log_probabilities = jax.nn.log_softmax(jnp.where(legal, logits, -jnp.inf))
    # Finite, so that only illegal tokens are at −∞.
    logits = jnp.nan_to_num(logits, nan=jnp.finfo(jnp.float32).min)
    logits = jnp.where(legal, logits, -jnp.inf)
    if sampling.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1)
    else:
        # Tokens are ranked by their logits: after the division more of them can be equal.
        if 0 < sampling.top_k < logits.shape[-1]:
            largest = jax.lax.top_k(logits, sampling.top_k)[0]
            logits = _keep(logits, largest, sampling.top_k)
        if sampling.top_p < 1:
            ordered = jnp.sort(logits, axis=-1, descending=True)
            mass = jnp.cumsum(jax.nn.softmax(_scaled(ordered, sampling.temperature)), axis=-1)
            # The token with which the mass reaches top_p is the last one that is kept.
            count = jnp.sum(mass[:, :-1] < sampling.top_p, axis=-1, keepdims=True) + 1
            logits = _keep(logits, ordered, count)
        tokens = jax.vmap(jax.random.categorical)(keys, _scaled(logits, sampling.temperature))
    chosen = jnp.take_along_axis(log_probabilities, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen


def _scaled(logits: jax.Array, temperature: float) -> jax.Array:
    """(logits − their maximum) / temperature: at most 0, so it can overflow towards −∞ only."""
    return (logits - logits.max(axis=-1, keepdims=True)) / temperature


def _keep(logits: jax.Array, ordered: jax.Array, count: jax.Array | int) -> jax.Array:
    """Puts −∞ in place of all but the `count` largest logits of each row, of equal ones the first.

    Args:
      logits: f32 `[batch, vocabulary]`.
      ordered: f32 `[batch, at least count]`, the largest logits in descending order.
      count: how many to keep; an int or int32 `[batch, 1]`.
    """
    last = jnp.broadcast_to(jnp.asarray(count) - 1, (len(logits), 1))
    least = jnp.take_along_axis(ordered, last, axis=-1)
    above, equal = logits > least, logits == least
    room = count - above.sum(axis=-1, keepdims=True)
    return jnp.where(above | (equal & (jnp.cumsum(equal, axis=-1) <= room)), logits, -jnp.inf)
