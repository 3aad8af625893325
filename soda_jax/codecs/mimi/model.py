"""The whole network: sound in pieces to codes, codes in pieces to sound.

Both directions work on a piece of some frames and the memory of what came before it; see `layers`. So
one compiled program serves clips of every length, and memory does not grow with the clip.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from soda_jax.codecs.mimi.config import MimiConfig
from soda_jax.codecs.mimi.layers import Conv, Past, SeaNet, UpConv, decoder, encoder
from soda_jax.codecs.mimi.quantizer import SplitQuantizer
from soda_jax.codecs.mimi.transformer import Memory, Transformer


class State(NamedTuple):
    """What encoder or decoder remembers between pieces.

    Attributes:
      seanet: of each convolution.
      transformer: of each layer.
      resample: of the convolution between the two frame rates.
      position: int32, positions of the transformer that have passed, the same for the whole batch.
    """

    seanet: Past
    transformer: Memory
    resample: jax.Array
    position: jax.Array


class Mimi(nnx.Module):
    """Encoder, quantizer and decoder.

    Attributes:
      config: the shape.
      codebooks: how many of the model's codebooks are used.
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
        """The state before the first sample."""
        return State(
            self.encoder.start(batch, dtype),
            self.encoder_transformer.start(batch, dtype),
            self.downsample.start(batch, dtype),
            jnp.int32(0),
        )

    def start_decoding(self, batch: int, dtype: jnp.dtype) -> State:
        """The state before the first frame."""
        return State(
            self.decoder.start(batch, dtype),
            self.decoder_transformer.start(batch, dtype),
            self.upsample.start(batch, dtype),
            jnp.int32(0),
        )

    def latents(self, audio: jax.Array, state: State, pieces: int) -> tuple[jax.Array, State]:
        """Sound to what is quantized.

        Args:
          audio: `[batch, samples]`, whole frames, of the type to compute in.
          state: of the samples before.
          pieces: the convolutions run on so many equal pieces of it, one after the other: small ones
            stay in a CPU's cache.

        Returns:
          `[batch, frames, hidden]` and the new state.
        """
        x, seanet = _in_pieces(self.encoder, audio[..., None], state.seanet, pieces)
        x, memory = self.encoder_transformer(x, state.transformer, state.position)
        # Published models repeat the first position to the left of the first frame.
        before = jnp.where(state.position == 0, x[:, :1], state.resample)
        position = state.position + x.shape[1]
        x, resample = self.downsample(x, before)
        return x, State(seanet, memory, resample, position)

    def encode(self, audio: jax.Array, state: State, pieces: int) -> tuple[jax.Array, State]:
        """Sound `[batch, samples]` to int32 `[batch, frames, codebooks]`; see `latents`."""
        x, state = self.latents(audio, state, pieces)
        return self.quantizer.encode(x), state

    def decode(
        self, codes: jax.Array, state: State, pieces: int, dtype: jnp.dtype
    ) -> tuple[jax.Array, State]:
        """int32 `[batch, frames, n]` to sound `[batch, samples]`, f32."""
        x = self.quantizer.decode(codes, dtype)
        x, resample = self.upsample(x, state.resample)
        position = state.position + x.shape[1]
        x, memory = self.decoder_transformer(x, state.transformer, state.position)
        x, seanet = _in_pieces(self.decoder, x, state.seanet, pieces)
        return x[..., 0].astype(jnp.float32), State(seanet, memory, resample, position)


def abstract(config: MimiConfig, codebooks: int) -> Mimi:
    """A model without values, to be filled."""
    return nnx.eval_shape(lambda: Mimi(config, codebooks))


def fill_at_random(model: Mimi, seed: int) -> None:
    """Gives every parameter a random value; see `layers.weight`."""
    rng = np.random.default_rng(seed)
    for _, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        noise = rng.standard_normal(param.shape, np.float32) if param.deviation else np.float32(0)
        value = np.broadcast_to(param.mean + param.deviation * noise, param.shape)
        param.set_value(jnp.asarray(value, jnp.float32))


def _in_pieces(net: SeaNet, x: jax.Array, past: Past, pieces: int) -> tuple[jax.Array, Past]:
    """Runs `net` over `[batch, time, channels]` in equal pieces of the time."""
    if pieces == 1:
        return net(x, past)
    batch, time, channels = x.shape
    cut = x.reshape(batch, pieces, time // pieces, channels).swapaxes(0, 1)

    def step(past: Past, piece: jax.Array) -> tuple[Past, jax.Array]:
        y, past = net(piece, past)
        return past, y

    past, y = jax.lax.scan(step, past, cut)
    return y.swapaxes(0, 1).reshape(batch, -1, y.shape[-1]), past
