"""What the page shows of a clip besides its sound: the mel spectrogram, and its tokens with their losses."""

import base64
from typing import Any

import numpy as np

from soda_jax.codecs.mel_features import MelGrid, log_mel
from soda_jax.errors import UserError
from soda_jax.evaluate.token_losses import TokenLosses
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.serve.clips import Clip
from soda_jax.tokens.documents import audio_span, text_span

_DARKEST, _COLUMNS = -80.0, 1200  # dB; most columns of a spectrogram


def mel_image(audio: np.ndarray, sample_rate: int) -> dict[str, Any]:
    """Returns a mel spectrogram, JSON-able.

    Args:
      audio: f32 mono `[samples]`.
      sample_rate: in Hz.

    Returns:
      columns, mels, seconds, and pixels: base64 of uint8 `[columns, mels]`, 0 = −80 dB of the loudest, 255 = the
      loudest, low frequencies first.
    """
    hop = 2 * max(1, round(sample_rate * 0.005), -(-len(audio) // (2 * _COLUMNS)))
    grid = MelGrid(sample_rate=sample_rate, hop=hop, window=4 * hop, mels=80)
    padded = np.pad(audio, (0, -len(audio) % hop))
    decibel = 20 / np.log(10) * log_mel(padded, grid)
    level = np.clip((decibel - decibel.max(initial=_DARKEST)) / -_DARKEST + 1, 0, 1)
    pixels = np.round(255 * level).astype(np.uint8)
    return {
        "columns": len(pixels),
        "mels": grid.mels,
        "seconds": len(audio) / sample_rate,
        "pixels": base64.b64encode(pixels.tobytes()).decode("ascii"),
    }


class TokenView:
    """Returns the tokens of clips with their losses."""

    def __init__(self, model: SpeechModel):
        """Prepares the losses of a model."""
        self._model, self._losses = model, TokenLosses(model)

    def __call__(self, clip: Clip) -> dict[str, Any]:
        """Returns the stream of a clip, JSON-able.

        The stream has the spoken text before the audio, or else the transcript after it, or else only the audio. A voice, the
        pieces of a long text and the recording before a continuation are not part of it.

        Returns:
          classes (names), normalizer, and for each token its id, class (index; markers have the last one), label, and
          loss in nats (None for the first).

        Raises:
          UserError: if the stream is longer than the context.
        """
        model, layout = self._model, self._model.layout
        assert clip.audio is not None
        if clip.codes is None:
            clip.codes = model.encode([clip.audio])[0]
        spans = [audio_span(clip.codes, layout, model.codebooks)] if len(clip.codes) else []
        spoken, heard = clip.text.strip(), ((clip.transcript or {}).get("text") or "").strip()
        if spoken or heard:
            text = text_span(model.tokenizer.encode(spoken or heard), layout)
            spans.insert(0 if spoken else 1, text)
        ids = np.concatenate([[layout.bos], *spans]).astype(np.int32)
        context = model.metadata["data"]["sequence_length"]
        if len(ids) > context:
            raise UserError(
                f"the clip has {len(ids):,} tokens, the context of the model {context:,}"
            )
        if len(ids) < 2:
            raise UserError("the clip has no tokens")
        losses = self._losses(ids)
        return {
            "classes": list(layout.class_names),
            "normalizer": "all ids",
            "id": ids.tolist(),
            "class": layout.class_of_id[ids].tolist(),
            "label": [self._label(int(token)) for token in ids],
            "loss": [None, *(round(float(loss), 4) for loss in losses)],
        }

    def _label(self, token: int) -> str:
        layout = self._model.layout
        markers = {
            layout.bos: "BOS", layout.eos: "EOS", layout.text_start: "text_start",
            layout.text_end: "text_end", layout.audio_start: "audio_start", layout.audio_end: "audio_end",
        }  # fmt: skip
        if token in markers:
            return markers[token]
        if token < layout.text_size:
            return self._model.tokenizer.decode(np.array([token]))
        book = int(np.searchsorted(layout.codebook_offsets, token, "right")) - 1
        return f"codebook {book}: {token - layout.codebook_offsets[book]}"
