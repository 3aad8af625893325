"""Sound coded as it comes in, and codes made audible as they come in.

    stream = StreamingEncoder(codec)
    codes = [stream.push(samples) for samples in microphone]   # [frames, codebooks], some of them empty
    codes.append(stream.finish())

All streams of a codec share one compiled program for each size of step.
"""

import jax.numpy as jnp
import numpy as np

from soda_jax.codecs.interface import check_codes
from soda_jax.codecs.mimi.codec import MimiCodec


class StreamingEncoder:
    """Codes of one clip whose samples come bit by bit.

    The codes are those of the whole clip: it goes through the same network with the same memory. The
    shapes differ, so the last bit of a latent may, and a code with it where two entries are as near.
    """

    def __init__(self, codec: MimiCodec, frames: int = 1):
        """Args:
        codec: the model.
        frames: how many frames are coded at once; more is faster and later (80 ms a frame).
        """
        if frames < 1:
            raise ValueError(f"a stream takes 1 frame at a time or more, not {frames}")
        self._codec, self._frames, self._finished = codec, frames, False
        self._left = np.zeros(0, np.float32)
        self._state = codec.model.start_encoding(1, jnp.dtype(codec.dtype))

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Takes float32 mono `[samples]`; returns uint16 `[frames, codebooks]` of what is whole."""
        if self._finished:
            raise ValueError("the stream is finished: begin another one")
        self._left = np.concatenate([self._left, np.asarray(samples, np.float32)])
        size = self._frames * self._codec.samples_per_frame
        codes = [np.zeros((0, len(self._codec.codebook_sizes)), np.uint16)]
        while len(self._left) >= size:
            now, self._left = self._left[:size], self._left[size:]
            found, self._state = self._codec.runner.encode_one(now[None], self._state)
            codes.append(np.asarray(found[0]).astype(np.uint16))
        return np.concatenate(codes)

    def finish(self) -> np.ndarray:
        """Fills the last frame up with zeros and codes what is left; the stream is at its end."""
        left, hop = len(self._left), self._codec.samples_per_frame
        rest = np.zeros(self._frames * hop - left if left else 0, np.float32)
        codes = self.push(rest)[: -(-left // hop)]
        self._finished = True
        return codes


class StreamingDecoder:
    """Sound of codes that come frame by frame."""

    def __init__(self, codec: MimiCodec):
        """Args: codec: the model."""
        self._codec = codec
        self._state = codec.model.start_decoding(1, jnp.dtype(codec.dtype))

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Takes integer `[frames, n]`; returns float32 `[frames * samples_per_frame]`."""
        checked = check_codes(codes, self._codec.codebook_sizes).astype(np.int32)
        sounds = [np.zeros(0, np.float32)]
        for frame in checked:
            sound, self._state = self._codec.runner.decode_one(frame[None, None], self._state)
            sounds.append(np.clip(np.asarray(sound[0]), -1, 1))
        return np.concatenate(sounds)
