"""Encodes audio and decodes codes incrementally.

    stream = StreamingEncoder(codec)
    codes = [stream.push(samples) for samples in microphone]  # [frames, codebooks]; frames ≥ 0
    codes.append(stream.finish())

The streams of a codec share compiled programs: one per value of `frames` for encoding, and one per
number of codebooks for decoding.
"""

import jax.numpy as jnp
import numpy as np

from soda_jax.codecs.interface import check_codes
from soda_jax.codecs.mimi.codec import MimiCodec


class StreamingEncoder:
    """Encodes a clip from consecutive parts of its samples.

    The codes equal those of the whole clip except for rounding. Because the array shapes differ,
    the last bits of a latent may differ, which changes a code if two entries are almost equally
    near.
    """

    def __init__(self, codec: MimiCodec, frames: int = 1):
        """Starts a stream that encodes `frames` frames at a time (each 80 ms in kyutai/mimi)."""
        if frames < 1:
            raise ValueError(f"a stream encodes at least 1 frame at a time, not {frames}")
        self._codec, self._frames, self._finished = codec, frames, False
        self._left = np.zeros(0, np.float32)
        self._state = codec.model.start_encoding(1, jnp.dtype(codec.dtype))

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Adds float32 mono `[samples]`; returns uint16 `[frames, codebooks]` of the new frames."""
        if self._finished:
            raise ValueError("the stream is finished: start another one")
        self._left = np.concatenate([self._left, np.asarray(samples, np.float32)])
        size = self._frames * self._codec.samples_per_frame
        codes = [np.zeros((0, len(self._codec.codebook_sizes)), np.uint16)]
        while len(self._left) >= size:
            now, self._left = self._left[:size], self._left[size:]
            audio = now.reshape(1, self._frames, -1)
            found, self._state = self._codec.runner.encode_one(audio, self._state)
            codes.append(np.asarray(found[0]).astype(np.uint16))
        return np.concatenate(codes)

    def finish(self) -> np.ndarray:
        """Pads the last frame with zeros, returns the remaining codes and ends the stream."""
        left, hop = len(self._left), self._codec.samples_per_frame
        rest = np.zeros(self._frames * hop - left if left else 0, np.float32)
        codes = self.push(rest)[: -(-left // hop)]
        self._finished = True
        return codes


class StreamingDecoder:
    """Decodes a clip from consecutive parts of its codes."""

    def __init__(self, codec: MimiCodec):
        self._codec = codec
        self._state = codec.model.start_decoding(1, jnp.dtype(codec.dtype))

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Decodes integer `[frames, n]` to float32 `[frames * samples_per_frame]`."""
        checked = check_codes(codes, self._codec.codebook_sizes).astype(np.int32)
        sounds = [np.zeros(0, np.float32)]
        for frame in checked:
            sound, self._state = self._codec.runner.decode_one(frame[None, None], self._state)
            sounds.append(np.clip(np.asarray(sound).reshape(-1), -1, 1))
        return np.concatenate(sounds)

    def finish(self) -> np.ndarray:
        """Ends the stream; every frame was decoded when it came, so no audio is left."""
        return np.zeros(0, np.float32)
