"""Drawing the next token: legal ids only, then temperature, top-k and top-p."""

import dataclasses

import jax
import jax.numpy as jnp

from soda_jax.errors import UserError

_NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_k: keep that many of the most likely tokens; 0 keeps all.
      top_p: keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all.

    Raises:
      UserError: for values out of range.
    """

    temperature: float = 0.9
    top_k: int = 0
    top_p: float = 0.8

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature {self.temperature} and top_k {self.top_k} must not be negative, "
                f"top_p {self.top_p} must be above 0 and at most 1"
            )


GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0)


def draw(
    keys: jax.Array, logits: jax.Array, legal: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row.

    Args:
      keys: PRNG keys `[batch]`, one a row, so that a row's draw does not depend on its batch.
      logits: f32 `[batch, vocabulary]`.
      legal: bool `[batch, vocabulary]`; at least one True a row.
      sampling: temperature, top-k, top-p; the latter two look at legal tokens only.

    Returns:
      tokens int32 `[batch]` and their log-probability among the legal ones at temperature 1, f32.
    """
    logits = jnp.where(legal, logits, _NEVER)
    log_probabilities = jax.nn.log_softmax(logits)
    if sampling.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1)
    else:
        scaled = logits / sampling.temperature
        if sampling.top_k:
            count = min(sampling.top_k, logits.shape[-1])
            least = jax.lax.top_k(scaled, count)[0][:, -1:]
            scaled = jnp.where(scaled < least, _NEVER, scaled)
        if sampling.top_p < 1:
            ordered = jnp.sort(scaled, axis=-1, descending=True)
            mass = jnp.cumsum(jax.nn.softmax(ordered), axis=-1)
            # The token that crosses top_p stays; the ones behind it go.
            kept = jnp.sum(mass < sampling.top_p, axis=-1, keepdims=True)
            least = jnp.take_along_axis(ordered, jnp.minimum(kept, logits.shape[-1] - 1), axis=-1)
            scaled = jnp.where(scaled < least, _NEVER, scaled)
        tokens = jax.vmap(jax.random.categorical)(keys, scaled)
    chosen = jnp.take_along_axis(log_probabilities, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen
