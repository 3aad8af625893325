"""Locates and reads the sound of an utterance; raises `BadInputError` if it is unusable."""

import functools
import os
from dataclasses import dataclass

import numpy as np

from soda_jax.codecs.audio import AudioError, read_audio, sound_seconds
from tokenize_pipeline.archives import is_archive
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.readers import UtteranceSource

# The length of a sound file is estimated from its size as 16-bit mono at 16 kHz, because slightly
# uneven shards cost less than opening every file of a large corpus.
_BYTES_PER_SECOND = 32_000
_MEMBER_SECONDS = 10.0  # assumed length of an archive member without metadata


def resolve(utterance: UtteranceSource, data_root: str) -> str:
    """Returns the path of a sound file or archive, which must be in `data_root` (an absolute path).

    Symbolic links are not resolved, so a link in the data root may point outside of it.

    Raises:
      BadInputError: `malformed_row` or `outside_data_root`.
    """
    audio = utterance.audio
    if audio is None:
        raise BadInputError("malformed_row", "speech needs an audio path")
    path = os.path.normpath(os.path.join(data_root, audio))
    if os.path.commonpath([data_root, path]) != data_root:
        raise BadInputError("outside_data_root", f"{audio} is outside the data root")
    if utterance.member is not None and not is_archive(path):
        raise BadInputError("malformed_row", f"{audio} is not an archive with members")
    return path


def expected_seconds(utterance: UtteranceSource, data_root: str) -> float:
    """Returns the expected length of an utterance in seconds, without opening its file.

    The length is used for planning only. It is taken from the times of the utterance, the metadata
    of the corpus, or the size of the file, in this order. For an archive member without times and
    metadata it is a constant, because its size is stored only in the archive.
    """
    start, end = utterance.start or 0.0, utterance.end
    if end is None and utterance.seconds is not None:
        return max(utterance.seconds, 0.0)
    if end is None and utterance.member is not None:
        return _MEMBER_SECONDS
    if end is None:
        try:
            path = os.path.join(data_root, utterance.audio or "")
            end = os.stat(path).st_size / _BYTES_PER_SECOND
        except (OSError, ValueError):  # reported when the shard is tokenized
            end = 0.0
    return max(end - start, 0.0)


_file_seconds = functools.lru_cache(maxsize=16)(sound_seconds)  # several captions share a file


@dataclass(frozen=True)
class Sound:
    """The sound of an utterance, located but not decoded.

    Attributes:
      utterance: the utterance.
      path: path of the file or archive, from `resolve`.
      content: bytes of the sound if it is in an archive, else None.
    """

    utterance: UtteranceSource
    path: str
    content: bytes | None = None

    def seconds(self, longest: float) -> float:
        """Returns the length in seconds, from the times and the header; 0 if unknown or negative.

        Raises:
          BadInputError: if the length exceeds `longest`.
        """
        end = self.utterance.end
        if end is None:
            packed = self.content
            end = _file_seconds(self.path) if packed is None else sound_seconds(packed)
        seconds = max((end or 0.0) - (self.utterance.start or 0.0), 0.0)
        if seconds > longest:
            raise BadInputError("too_long", f"{seconds:.1f} s > --max_audio_seconds={longest:g}")
        return seconds

    def samples(self, sample_rate: int) -> np.ndarray:
        """Returns the samples, float32 mono `[samples]` at `sample_rate` Hz.

        Raises:
          BadInputError: if `read_audio` raises AudioError; the reason is the same.
        """
        source = self.path if self.content is None else self.content
        name = self.path if self.content is None else f"{self.path}: {self.utterance.member}"
        try:
            return read_audio(
                source, sample_rate, self.utterance.start, self.utterance.end, name=name
            )
        except AudioError as error:
            message = with_corpus_path(self.utterance, self.path, str(error))
            raise BadInputError(error.reason, message) from None


def with_corpus_path(utterance: UtteranceSource, path: str, message: str) -> str:
    """Replaces `path` by the path in the corpus, so that messages are the same on every machine."""
    return message.replace(path, utterance.audio or "")
