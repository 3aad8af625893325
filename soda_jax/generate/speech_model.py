"""A trained model with its tokenizer and codec: text and sound in, text and sound out."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.codecs import Codec, load_codec, saved_codec
from soda_jax.codecs.audio import encode_long, read_audio
from soda_jax.errors import UserError
from soda_jax.generate.checkpoint import load_decoder
from soda_jax.generate.engine import Engine, Generated
from soda_jax.generate.sampling import GREEDY, Sampling
from soda_jax.model import ModelFunctions
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.documents import audio_span, text_span
from soda_jax.tokens.front_end import FrontEnd
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout

Sound = str | Path | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Speech:
    """Generated sound.

    Attributes:
      audio: f32 mono `[samples]`, in −1 … 1.
      sample_rate: in Hz.
      codes: uint16 `[frames, codebooks]`.
      finished: False if the length limit closed the utterance.
    """

    audio: np.ndarray
    sample_rate: int
    codes: np.ndarray
    finished: bool

    def save(self, path: str | Path) -> None:
        """Writes a WAV file."""
        from soda_jax.codecs.audio import write_wav

        write_wav(path, self.audio, self.sample_rate)


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechModel:
    """Speaks, transcribes and continues; `load` makes one from a run's folder.

    Attributes:
      step: training steps of the checkpoint.
      metadata: metadata of the checkpoint.
      layout, tokenizer, codec: the front end.
      model, params: the decoder.
      codebooks: how many codebooks the model was shown.
    """

    step: int
    metadata: dict[str, Any]
    layout: VocabularyLayout
    tokenizer: TextTokenizer
    codec: Codec
    model: ModelFunctions
    params: Any
    codebooks: int

    def __post_init__(self) -> None:
        engine = Engine(self.model, self.params, self.layout, self.codebooks)
        object.__setattr__(self, "_engine", engine)

    @property
    def engine(self) -> Engine:
        """The decoding loop, for prompts of one's own."""
        return self._engine  # type: ignore[attr-defined]

    def speak(
        self,
        text: str | Sequence[str],
        *,
        voice: tuple[Sound, str] | None = None,
        max_seconds: float = 15.0,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Any:
        """Speaks a text (a `Speech`) or several (a list).

        Args:
          text: what to say.
          voice: a sound and its transcript, whose voice is taken on.
          max_seconds: the utterance is closed there, at a frame boundary.
          sampling: default temperature 0.9, top-p 0.8.
          seed: of the draws.
        """
        texts = [text] if isinstance(text, str) else list(text)
        before = [np.array([self.layout.bos], np.int32)]
        if voice is not None:
            sound, transcript = voice
            before += [self._text(transcript), self._audio(self._encode([sound])[0])]
        start = np.array([self.layout.audio_start], np.int32)
        prompts = [np.concatenate([*before, self._text(t), start]) for t in texts]
        speeches = self._generate_speech(prompts, max_seconds, sampling, seed)
        return speeches[0] if isinstance(text, str) else speeches

    def transcribe(
        self,
        sound: Sound | Sequence[Sound],
        *,
        max_tokens: int = 448,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> Any:
        """The text of a sound (str) or of several (list).

        Args:
          sound: a file of any format that soundfile reads, or f32 mono at the codec's sample rate.
          max_tokens: text tokens at most.
          sampling: greedy by default.
          seed: of the draws.
        """
        sounds = [sound] if isinstance(sound, str | Path | np.ndarray) else list(sound)
        prompts = [
            self._join(self._audio(codes), self.layout.text_start) for codes in self._encode(sounds)
        ]
        texts = self.transcribe_prompts(prompts, max_tokens, sampling, seed)
        return texts[0] if isinstance(sound, str | Path | np.ndarray) else texts

    def transcribe_codes(self, codes: Sequence[np.ndarray], *, max_tokens: int = 448) -> list[str]:
        """Greedy texts of utterances given as codes `[frames, codebooks]`."""
        prompts = [self._join(self._audio(c), self.layout.text_start) for c in codes]
        return self.transcribe_prompts(prompts, max_tokens, GREEDY, 0)

    def transcribe_prompts(
        self, prompts: list[np.ndarray], max_tokens: int, sampling: Sampling, seed: int
    ) -> list[str]:
        """Texts that follow prompts which end in `text_start`."""
        generated = self.engine(
            prompts, stop=self.layout.text_end, budget=max_tokens, sampling=sampling, seed=seed
        )
        return [self.tokenizer.decode(result.ids) for result in generated]

    def continue_audio(
        self,
        sound: Sound,
        *,
        max_seconds: float = 15.0,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Speech:
        """Continues a sound; the result holds the continuation alone."""
        span = audio_span(self._encode([sound])[0], self.layout, self.codebooks, True, False)
        prompt = np.concatenate([[self.layout.bos], span]).astype(np.int32)
        return self._generate_speech([prompt], max_seconds, sampling, seed)[0]

    def _generate_speech(
        self,
        prompts: list[np.ndarray],
        max_seconds: float,
        sampling: Sampling | None,
        seed: int,
    ) -> list[Speech]:
        if not 0 < max_seconds < float("inf"):
            raise UserError(f"max_seconds {max_seconds} is out of range: more than 0 and finite")
        frames = max(1, int(max_seconds * self.codec.frame_rate))
        generated = self.engine(
            prompts,
            stop=self.layout.audio_end,
            budget=frames * self.codebooks + 1,
            sampling=sampling or Sampling(),
            max_frames=frames,
            seed=seed,
        )
        codes = [self._codes(result) for result in generated]
        # A continuation may end at once: no frames, no sound, and nothing for the codec to do.
        audio = [self.codec.decode([c])[0] if len(c) else np.zeros(0, np.float32) for c in codes]
        rate = self.codec.sample_rate
        return [
            Speech(sound, rate, c, result.finished)
            for sound, c, result in zip(audio, codes, generated, strict=True)
        ]

    def _codes(self, result: Generated) -> np.ndarray:
        ids = result.ids[result.ids != self.layout.audio_end]
        return self.layout.ids_to_codes(ids, self.codebooks)

    def _encode(self, sounds: Sequence[Sound]) -> list[np.ndarray]:
        rate = self.codec.sample_rate
        audio = [s if isinstance(s, np.ndarray) else read_audio(s, rate) for s in sounds]
        return [encode_long(self.codec, np.asarray(a, np.float32)) for a in audio]

    def _text(self, text: str) -> np.ndarray:
        ids = self.tokenizer.encode(text.strip())
        if not len(ids):
            raise UserError("the text to speak is empty")
        return text_span(ids, self.layout)

    def _audio(self, codes: np.ndarray) -> np.ndarray:
        return audio_span(codes, self.layout, self.codebooks)

    def _join(self, span: np.ndarray, last: int) -> np.ndarray:
        return np.concatenate([[self.layout.bos], span, [last]]).astype(np.int32)


def load(workdir: str | Path, *, step: int | None = None, codec: str = "") -> SpeechModel:
    """Opens a run's checkpoint with the tokenizer and the codec that lie beside it.

    Args:
      workdir: the run's folder.
      step: which checkpoint; the newest valid one by default.
      codec: where the codec is, if not beside the checkpoint, as for `load_codec`.

    Raises:
      UserError: if there is no valid checkpoint, or tokenizer or codec are not those of training.
    """
    decoder = load_decoder(workdir, step)
    workdir = Path(workdir)
    layout, metadata = decoder.layout, decoder.metadata
    tokenizer = load_tokenizer(workdir / "tokenizer")
    opened = load_codec(codec or saved_codec(workdir / "codec"))
    trained = FrontEnd.from_metadata(metadata)
    # A converted model may come from a format without codec fingerprints.
    if trained.codec is None and "converted_from" not in metadata:
        raise UserError(f"{workdir} was trained on text only: it cannot generate or read speech")
    ours = FrontEnd(
        make_layout(tokenizer, tuple(opened.codebook_sizes)),
        tokenizer.fingerprint,
        opened.fingerprint,
    )
    codec_fix = "pass the codec of the model with --codec"
    ours.check_same(
        trained,
        f"{workdir / 'tokenizer'} with codec {codec or workdir / 'codec'}",
        "the checkpoint",
        fixes={
            "tokenizer": f"copy the tokenizer of its data set to {workdir / 'tokenizer'}",
            "codec": codec_fix,
            "vocabulary layout": codec_fix,
        },
    )
    return SpeechModel(
        decoder.step,
        metadata,
        layout,
        tokenizer,
        opened,
        decoder.model,
        decoder.params,
        _codebooks(metadata, layout),
    )


def _codebooks(metadata: dict[str, Any], layout: VocabularyLayout) -> int:
    """How many codebooks training showed: the largest number among its sources."""
    sources = [s for s in metadata["data"]["sources"].values() if s["composition"] != "text"]
    shown = [1 if s["composition"] == "S" else s["codebooks"] or layout.codebooks for s in sources]
    return max(shown, default=layout.codebooks)
