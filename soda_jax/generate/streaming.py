"""Turns the tokens of a speech task into audio while they are generated."""

from collections import defaultdict

import numpy as np

from soda_jax.codecs.streaming import streaming_decoder
from soda_jax.generate.tasks import TaskContext


class SpeechStream:
    """Decodes the pieces of one request in their order; later pieces wait until the ones before have ended.

    The audio has the length of `Result.audio`, pauses included.
    """

    def __init__(self, context: TaskContext, frames: int = 4):
        """Starts a stream; `frames` is the number of frames that a codec without state decodes at a time."""
        self._context, self._frames = context, frames
        self._decoder = streaming_decoder(context.model.codec, frames)
        self._piece, self._begun = 0, False
        self._ids: dict[int, list[np.ndarray]] = defaultdict(list)  # not decoded yet
        self._ended: set[int] = set()

    def push(self, piece: int, ids: np.ndarray, ended: bool) -> np.ndarray:
        """Adds tokens of a piece.

        Args:
          piece: number of the piece, from 0.
          ids: its new tokens, `[tokens]`; a marker at the end is ignored.
          ended: whether the piece has no further tokens.

        Returns:
          the new audio, f32 mono `[samples]`, which may be empty.
        """
        model, audio = self._context.model, [np.zeros(0, np.float32)]
        self._ids[piece].append(ids[ids != model.layout.audio_end])
        if ended:
            self._ended.add(piece)
        while True:
            waiting = self._ids.pop(self._piece, [])
            if not waiting:
                break
            if self._piece and not self._begun:
                audio.append(np.zeros(self._context.pause_samples, np.float32))
            self._begun = True
            joined = np.concatenate(waiting)
            whole = len(joined) - len(joined) % model.codebooks
            codes = model.layout.ids_to_codes(joined[:whole], model.codebooks)
            audio.append(self._decoder.push(codes))
            if self._piece not in self._ended:
                self._ids[self._piece] = [joined[whole:]]
                break
            audio.append(self._decoder.finish())
            self._piece, self._begun = self._piece + 1, False
            self._decoder = streaming_decoder(model.codec, self._frames)
        return np.concatenate(audio)
