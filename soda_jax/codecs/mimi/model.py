"""Defines the Mimi network, which encodes audio and decodes codes in pieces.

The encoder and the decoder process a piece of several frames, given the state after the previous
piece; see `layers`. One compiled program can therefore process clips of any length in constant
memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from soda_jax.codecs.mimi.config import MimiConfig
from soda_jax.codecs.mimi.layers import Conv, Past, SeaNet, UpConv, decoder, encoder, matmul, weight
from soda_jax.codecs.mimi.transformer import Memory, Transformer


class State(NamedTuple):
    """State of the encoder or the decoder between two pieces.

    Attributes:
      seanet: past inputs of each convolution.
      transformer: past keys and values of each layer.
      resample: past inputs of the convolution that changes the frame rate.
      position: int32, number of past transformer positions, equal for the whole batch.
    """

    seanet: Past
    transformer: Memory
    resample: jax.Array
    position: jax.Array


class QuantizerChain(nnx.Module):
    """Residual vector quantizer (RVQ): each codebook quantizes the residual of the previous ones.

    Attributes:
      codebooks: f32 `[codebooks, size, dim]`.
      inward: f32 `[hidden, dim]`, projection before the first codebook.
      outward: f32 `[dim, hidden]`, projection after the sum of the entries.
    """

    def __init__(self, config: MimiConfig, codebooks: int):
        size, dim, hidden = config.codebook_size, config.codebook_dim, config.hidden_size
        self.codebooks = weight((codebooks, size, dim), 2 * dim)
        self.inward = weight((hidden, dim), 2 * hidden)
        self.outward = weight((dim, hidden), 2 * dim)

    def encode(self, latents: jax.Array) -> jax.Array:
        """Maps `[batch, frames, hidden]` to int32 `[batch, frames, codebooks]`.

        The projection has the dtype of `latents`; residuals and distances are f32.
        """
        residual = matmul(latents, self.inward[...].astype(latents.dtype)).astype(jnp.float32)
        codes = []
        for number in range(self.codebooks.shape[0]):
            book = self.codebooks[number]
            # |x − e|² without |x|², which is the same for every entry.
            distance = jnp.square(book).sum(-1) - 2 * matmul(residual, book.T)
            code = jnp.argmin(distance, axis=-1)
            residual = residual - book[code]
            codes.append(code)
        return jnp.stack(codes, axis=-1).astype(jnp.int32)

    def decode(self, codes: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Maps int32 `[batch, frames, n]`, n ≤ codebooks, to `dtype` `[batch, frames, hidden]`."""
        total = self.codebooks[0][codes[..., 0]]
        for number in range(1, codes.shape[-1]):
            total = total + self.codebooks[number][codes[..., number]]
        return matmul(total.astype(dtype), self.outward[...].astype(dtype))


class SplitQuantizer(nnx.Module):
    """Split RVQ: a semantic quantizer in parallel with an acoustic RVQ; their outputs are added."""

    def __init__(self, config: MimiConfig, codebooks: int):
        self.semantic = QuantizerChain(config, 1)
        self.acoustic = QuantizerChain(config, codebooks - 1) if codebooks > 1 else None

    def encode(self, latents: jax.Array) -> jax.Array:
        """Maps `[batch, frames, hidden]` to int32 `[batch, frames, codebooks]`, semantic first."""
        parts = [part.encode(latents) for part in (self.semantic, self.acoustic) if part]
        return jnp.concatenate(parts, axis=-1)

    def decode(self, codes: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Maps int32 `[batch, frames, n]` to `[batch, frames, hidden]`."""
        latents = self.semantic.decode(codes[..., :1], dtype)
        if self.acoustic is not None and codes.shape[-1] > 1:
            latents = latents + self.acoustic.decode(codes[..., 1:], dtype)
        return latents


class Mimi(nnx.Module):
    """Encoder, quantizer and decoder.

    Attributes:
      config: dimensions of the model.
      codebooks: number of codebooks in use.
    """

    def __init__(self, config: MimiConfig, codebooks: int):
        self.config, self.codebooks = config, codebooks
        stride, width = config.latent_stride, config.hidden_size
        self.encoder = encoder(config)
        self.encoder_transformer = Transformer(config)
        self.downsample = Conv(width, width, 2 * stride, stride=stride, bias=False)
        self.quantizer = SplitQuantizer(config, codebooks)
        self.upsample = UpConv(width, width, stride, depthwise=True, bias=False)
        self.decoder_transformer = Transformer(config)
        self.decoder = decoder(config)

    def start_encoding(self, batch: int, dtype: jnp.dtype) -> State:
        """Returns the encoder state before the first sample."""
        seanet, memory = (
            self.encoder.start(batch, dtype),
            self.encoder_transformer.start(batch, dtype),
        )
        return State(seanet, memory, self.downsample.start(batch, dtype), jnp.int32(0))

    def start_decoding(self, batch: int, dtype: jnp.dtype) -> State:
        """Returns the decoder state before the first frame."""
        seanet, memory = (
            self.decoder.start(batch, dtype),
            self.decoder_transformer.start(batch, dtype),
        )
        return State(seanet, memory, self.upsample.start(batch, dtype), jnp.int32(0))

    def encode(self, audio: jax.Array, state: State, pieces: int) -> tuple[jax.Array, State]:
        """Encodes a piece of audio.

        Args:
          audio: `[batch, samples]`, whole frames, in the dtype of the activations.
          state: state after the previous samples.
          pieces: number of equal parts into which `audio` is split for the convolutions, which
            process them sequentially; activations of small parts fit into the CPU cache.

        Returns:
          int32 `[batch, frames, codebooks]` and the new state.
        """
        x, seanet = _in_pieces(self.encoder, audio[..., None], state.seanet, pieces)
        x, memory = self.encoder_transformer(x, state.transformer, state.position)
        # Like the published model, pad on the left with copies of the first position.
        before = jnp.where(state.position == 0, x[:, :1], state.resample)
        position = state.position + x.shape[1]
        x, resample = self.downsample(x, before)
        return self.quantizer.encode(x), State(seanet, memory, resample, position)

    def decode(
        self, codes: jax.Array, state: State, pieces: int, dtype: jnp.dtype
    ) -> tuple[jax.Array, State]:
        """Decodes int32 `[batch, frames, n]` to audio f32 `[batch, samples]`; see `encode`."""
        x = self.quantizer.decode(codes, dtype)
        x, resample = self.upsample(x, state.resample)
        position = state.position + x.shape[1]
        x, memory = self.decoder_transformer(x, state.transformer, state.position)
        x, seanet = _in_pieces(self.decoder, x, state.seanet, pieces)
        return x[..., 0].astype(jnp.float32), State(seanet, memory, resample, position)


def abstract(config: MimiConfig, codebooks: int) -> Mimi:
    """Returns a model whose parameters are `jax.ShapeDtypeStruct`s."""
    return nnx.eval_shape(lambda: Mimi(config, codebooks))


def fill_at_random(model: Mimi, seed: int) -> None:
    """Sets every parameter to random values; see `layers.weight`."""
    rng = np.random.default_rng(seed)
    for _, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        noise = rng.standard_normal(param.shape, np.float32) if param.deviation else np.float32(0)
        value = np.broadcast_to(param.mean + param.deviation * noise, param.shape)
        param.set_value(jnp.asarray(value, jnp.float32))


def _in_pieces(net: SeaNet, x: jax.Array, past: Past, pieces: int) -> tuple[jax.Array, Past]:
    """Applies `net` to `[batch, time, channels]`, split into equal pieces along time."""
    if pieces == 1:
        return net(x, past)
    batch, time, channels = x.shape
    cut = x.reshape(batch, pieces, time // pieces, channels).swapaxes(0, 1)

    def step(past: Past, piece: jax.Array) -> tuple[Past, jax.Array]:
        y, past = net(piece, past)
        return past, y

    past, y = jax.lax.scan(step, past, cut)
    return y.swapaxes(0, 1).reshape(batch, -1, y.shape[-1]), past
