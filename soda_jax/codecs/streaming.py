"""Decodes codes to audio while they arrive, with any codec."""

from typing import Protocol

import numpy as np

from soda_jax.codecs.interface import Codec

# Frames that are decoded before and after the new ones, because a codec uses the neighbors of a frame.
_BEFORE, _AFTER = 4, 1
_FADE = 0.02  # seconds


class StreamingDecoder(Protocol):
    """Decodes a clip from consecutive parts of its codes."""

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Adds integer `[frames, n]`; returns the new float32 mono `[samples]`, which may be empty."""
        ...

    def finish(self) -> np.ndarray:
        """Returns the remaining float32 mono `[samples]` and ends the stream."""
        ...


def streaming_decoder(codec: Codec, frames: int = 4) -> StreamingDecoder:
    """Returns a decoder for one clip.

    A codec with a method `streaming_decoder()`, such as Mimi, decodes exactly, frame by frame. For other
    codecs the clip is decoded in overlapping pieces, see `OverlappingDecoder`.

    Args:
      codec: any codec.
      frames: new frames of each overlapping piece.
    """
    own = getattr(codec, "streaming_decoder", None)
    return own() if own is not None else OverlappingDecoder(codec, frames)


class OverlappingDecoder:
    """Decodes pieces of a clip together with their neighboring frames, and cross-fades at the joints.

    The audio has the length of the whole clip's, but not its samples: each piece is decoded on its own, so the
    phases at a joint differ, which a cross-fade of 20 ms hides.
    """

    def __init__(self, codec: Codec, frames: int):
        """Starts a stream that decodes `frames` new frames at a time."""
        if frames < 1:
            raise ValueError(f"a stream decodes at least 1 frame at a time, not {frames}")
        self._codec, self._frames = codec, frames
        hop = codec.samples_per_frame
        self._fade = min(hop, round(_FADE * codec.sample_rate))
        self._codes: np.ndarray | None = None  # of the frames that are still needed
        self._first = self._done = 0  # frame of the first code; frames whose audio was returned
        self._tail = np.zeros(0, np.float32)  # audio after the last returned sample

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Adds integer `[frames, n]`; returns the audio of whole pieces that are followed by a frame."""
        if len(codes):
            known = [] if self._codes is None else [self._codes]
            self._codes = np.concatenate([*known, np.asarray(codes)])
        audio = [np.zeros(0, np.float32)]
        while self._codes is not None and self._left() >= self._frames + _AFTER:
            audio.append(self._decode(self._frames))
        return np.concatenate(audio)

    def finish(self) -> np.ndarray:
        """Returns the audio of the frames that are left."""
        return self._decode(self._left()) if self._left() else np.zeros(0, np.float32)

    def _left(self) -> int:
        """Returns the number of frames whose audio was not returned."""
        return 0 if self._codes is None else self._first + len(self._codes) - self._done

    def _decode(self, count: int) -> np.ndarray:
        assert self._codes is not None
        hop, start = self._codec.samples_per_frame, self._done - self._first
        piece = self._codes[: start + count + _AFTER]
        audio = self._codec.decode([piece])[0]
        new = audio[start * hop : (start + count) * hop].copy()
        fade = min(self._fade, len(self._tail))
        rise = (np.arange(fade, dtype=np.float32) + 0.5) / max(fade, 1)
        new[:fade] = new[:fade] * rise + self._tail[:fade] * (1 - rise)
        self._tail = audio[(start + count) * hop :][: self._fade]
        self._done += count
        drop = max(0, self._done - self._first - _BEFORE)
        self._codes, self._first = self._codes[drop:], self._first + drop
        return new
