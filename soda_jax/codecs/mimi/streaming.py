"""Sound coded as it comes in, and codes made audible as they come in.

stream = StreamingEncoder(codec)
codes = [stream.push(samples) for samples in microphone]   # [frames, codebooks], some of them empty
codes.append(stream.finish())
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from soda_jax.codecs.interface import check_codes
from soda_jax.codecs.mimi.codec import MimiCodec
from soda_jax.codecs.mimi.model import Mimi, State


class _Stream:
    """What both directions share: a jitted step of one call, and the state between calls."""

    def __init__(self, codec: MimiCodec, frames: int):
        if frames < 1:
            raise ValueError(f"a stream takes 1 frame at a time or more, not {frames}")
        self.codec, self.frames = codec, frames
        self._graph, self._params = nnx.split(codec.model)
        self._dtype = jnp.dtype(codec.dtype)


class StreamingEncoder(_Stream):
    """Codes of one clip whose samples come bit by bit.

    The codes are those of the whole clip: it goes through the same network with the same memory. The
    shapes differ, so the last bit of a latent may, and a code with it where two entries are as near.
    """

    def __init__(self, codec: MimiCodec, frames: int = 1):
        """Args:
        codec: the model.
        frames: how many frames are coded at once; more is faster and later (80 ms a frame).
        """
        super().__init__(codec, frames)
        self._left = np.zeros(0, np.float32)
        self._state = codec.model.start_encoding(1, self._dtype)
        self._step: Callable = jax.jit(partial(_encode, self._graph), donate_argnums=2)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Takes float32 mono `[samples]`; returns uint16 `[frames, codebooks]` of what is whole."""
        self._left = np.concatenate([self._left, np.asarray(samples, np.float32)])
        size = self.frames * self.codec.samples_per_frame
        codes = [np.zeros((0, len(self.codec.codebook_sizes)), np.uint16)]
        while len(self._left) >= size:
            now, self._left = self._left[:size], self._left[size:]
            found, self._state = self._step(
                self._params, now[None].astype(self._dtype), self._state
            )
            codes.append(np.asarray(found[0]).astype(np.uint16))
        return np.concatenate(codes)

    def finish(self) -> np.ndarray:
        """Fills the last frame up with zeros and codes what is left; the stream is at its end."""
        frames = -(-len(self._left) // self.codec.samples_per_frame)
        if not frames:
            return self.push(self._left[:0])
        size = self.frames * self.codec.samples_per_frame
        return self.push(np.zeros(size - len(self._left), np.float32))[:frames]


class StreamingDecoder(_Stream):
    """Sound of codes that come frame by frame."""

    def __init__(self, codec: MimiCodec):
        """Args: codec: the model."""
        super().__init__(codec, 1)
        self._state = codec.model.start_decoding(1, self._dtype)
        self._step: Callable = jax.jit(partial(_decode, self._graph, self._dtype), donate_argnums=2)

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Takes integer `[frames, n]`; returns float32 `[frames * samples_per_frame]`."""
        checked = check_codes(codes, self.codec.codebook_sizes).astype(np.int32)
        sounds = [np.zeros(0, np.float32)]
        for frame in checked:
            sound, self._state = self._step(self._params, frame[None, None], self._state)
            sounds.append(np.clip(np.asarray(sound[0]), -1, 1))
        return np.concatenate(sounds)


def _encode(
    graph: nnx.GraphDef, params: nnx.State, audio: jax.Array, state: State
) -> tuple[jax.Array, State]:
    model: Mimi = nnx.merge(graph, params)
    return model.encode(audio, state, 1)


def _decode(
    graph: nnx.GraphDef, dtype: jnp.dtype, params: nnx.State, codes: jax.Array, state: State
) -> tuple[jax.Array, State]:
    model: Mimi = nnx.merge(graph, params)
    return model.decode(codes, state, 1, dtype)
