"""The audio of one utterance, judged: what is wrong with it becomes a `BadInputError`."""

import functools
import os

import numpy as np

from soda_jax.codecs.audio import AudioError, read_audio
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.readers import UtteranceSource


def resolve(audio: str | None, data_root: str) -> str:
    """The path of a sound file, which must lie in `data_root` (an absolute path).

    The path itself is judged, not what a symbolic link in the data root leads to: a link is the
    owner's own doing.
    """
    if audio is None:
        raise BadInputError("malformed_row", "speech needs an audio path")
    path = os.path.normpath(os.path.join(data_root, audio))
    if os.path.commonpath([data_root, path]) != data_root:
        raise BadInputError("outside_data_root", f"{audio} is outside the data root")
    return path


@functools.lru_cache(maxsize=16)
def _file_seconds(path: str) -> float | None:
    """Seconds of audio by the header; None if it cannot be read. Cached: captions share a file."""
    import soundfile

    try:
        return soundfile.info(path).duration
    except (soundfile.SoundFileError, RuntimeError, ZeroDivisionError):
        return None


def expected_seconds(utterance: UtteranceSource, data_root: str, longest: float) -> float:
    """Seconds of an utterance by its times and the header of its file; 0 where they make no sense.

    Raises:
      BadInputError: for a path outside the data root, or more than `longest` seconds.
    """
    path = resolve(utterance.audio, data_root)
    end = _file_seconds(path) if utterance.end is None else utterance.end
    seconds = max((end or 0.0) - (utterance.start or 0.0), 0.0)
    if seconds > longest:
        raise BadInputError("too_long", f"{seconds:.1f} s, --max_audio_seconds is {longest:g}")
    return seconds


def load_sound(utterance: UtteranceSource, data_root: str, sample_rate: int) -> np.ndarray:
    """The samples of an utterance, float32 mono `[samples]` at `sample_rate` Hz.

    Raises:
      BadInputError: with the reason of `read_audio`.
    """
    path = resolve(utterance.audio, data_root)
    try:
        return read_audio(path, sample_rate, utterance.start, utterance.end)
    except AudioError as error:
        # Paths as the corpus names them: the quarantine file must not depend on the machine.
        message = str(error).replace(path, utterance.audio or "")
        raise BadInputError(error.reason, message) from None
