"""The split residual quantizer: one semantic codebook and a parallel chain of acoustic codebooks."""

import jax
import jax.numpy as jnp
from flax import nnx

from soda_jax.codecs.mimi.config import MimiConfig
from soda_jax.codecs.mimi.layers import matmul, weight


class ResidualQuantizer(nnx.Module):
    """Each codebook codes what the ones before it left over; distances are Euclidean.

    Attributes:
      codebooks: f32 `[codebooks, size, dim]`.
      inward: f32 `[hidden, dim]`, before the first codebook.
      outward: f32 `[dim, hidden]`, after the sum of the entries.
    """

    def __init__(self, config: MimiConfig, codebooks: int):
        size, dim, hidden = config.codebook_size, config.codebook_dim, config.hidden_size
        self.codebooks = weight((codebooks, size, dim), 2 * dim)
        self.inward = weight((hidden, dim), 2 * hidden)
        self.outward = weight((dim, hidden), 2 * dim)

    def encode(self, latents: jax.Array) -> jax.Array:
        """`[batch, frames, hidden]` to int32 `[batch, frames, codebooks]`; computed in f32."""
        left = matmul(latents, self.inward[...].astype(latents.dtype)).astype(jnp.float32)
        codes = []
        for number in range(self.codebooks.shape[0]):
            book = self.codebooks[number]
            # |x − e|² without |x|², which is the same for every entry.
            distance = jnp.square(book).sum(-1) - 2 * matmul(left, book.T)
            code = jnp.argmin(distance, axis=-1)
            left = left - book[code]
            codes.append(code)
        return jnp.stack(codes, axis=-1).astype(jnp.int32)

    def decode(self, codes: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """int32 `[batch, frames, n]`, n ≤ codebooks, to `[batch, frames, hidden]` in `dtype`."""
        total = self.codebooks[0][codes[..., 0]]
        for number in range(1, codes.shape[-1]):
            total = total + self.codebooks[number][codes[..., number]]
        return matmul(total.astype(dtype), self.outward[...].astype(dtype))


class SplitQuantizer(nnx.Module):
    """The semantic codebook and the acoustic chain, both fed the same latents, summed in decoding."""

    def __init__(self, config: MimiConfig, codebooks: int):
        self.semantic = ResidualQuantizer(config, 1)
        self.acoustic = ResidualQuantizer(config, codebooks - 1) if codebooks > 1 else None

    def encode(self, latents: jax.Array) -> jax.Array:
        """`[batch, frames, hidden]` to int32 `[batch, frames, codebooks]`, the semantic one first."""
        parts = [part.encode(latents) for part in (self.semantic, self.acoustic) if part]
        return jnp.concatenate(parts, axis=-1)

    def decode(self, codes: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """int32 `[batch, frames, n]` to `[batch, frames, hidden]`."""
        latents = self.semantic.decode(codes[..., :1], dtype)
        if self.acoustic is not None and codes.shape[-1] > 1:
            latents = latents + self.acoustic.decode(codes[..., 1:], dtype)
        return latents
