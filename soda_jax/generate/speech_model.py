"""Synthesizes, transcribes and continues speech with a trained model, tokenizer and codec."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from soda_jax.codecs import Codec, load_codec, saved_codec
from soda_jax.codecs.audio import encode_long, piece_samples, read_audio, write_wav
from soda_jax.errors import UserError
from soda_jax.generate.checkpoint import TrainedDecoder, load_decoder
from soda_jax.generate.engine import Engine
from soda_jax.generate.sampling import GREEDY, Sampling
from soda_jax.model.decoding import DTYPES, check_dtype
from soda_jax.tokens.documents import audio_span, most_codebooks, text_span
from soda_jax.tokens.front_end import FrontEnd
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout

Sound = str | Path | np.ndarray

# Seconds of audio that a codec encodes at once, as in SODA.
_PIECE = 60.0


@dataclasses.dataclass(frozen=True, eq=False)
class Speech:
    """Generated speech.

    Attributes:
      audio: f32 mono `[samples]`, within [-1, 1].
      sample_rate: sample rate in Hz.
      codes: uint16 `[frames, codebooks]`.
      finished: False if the length limit ended the utterance.
    """

    audio: np.ndarray
    sample_rate: int
    codes: np.ndarray
    finished: bool

    def save(self, path: str | Path) -> None:
        """Writes a WAV file."""
        write_wav(path, self.audio, self.sample_rate)


class Transcript(NamedTuple):
    """A transcript; `finished` is whether the model ended it within the maximum number of tokens."""

    text: str
    finished: bool


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechModel(TrainedDecoder):
    """A decoder with its tokenizer and codec; `load` opens a trained one.

    Attributes:
      tokenizer: tokenizer of the training data.
      codec: codec of the training data.
      codebooks: number of codebooks per frame that the model was trained on.
      dtype: dtype of the weights for decoding; empty for the default of the platform.
    """

    tokenizer: TextTokenizer = dataclasses.field(kw_only=True)
    codec: Codec = dataclasses.field(kw_only=True)
    codebooks: int = dataclasses.field(kw_only=True)
    dtype: str = ""

    @cached_property
    def engine(self) -> Engine:
        """The decoding loop; call it directly for prompts that the other methods do not build."""
        return Engine(
            self.model,
            self.params,
            self.layout,
            self.codebooks,
            dtype=self.dtype,
            placement=self.placement,
        )

    def for_decoding(self) -> "SpeechModel":
        """Returns this model with weights for decoding only: `params`, which losses need, is None.

        The parameters of the layers are freed when no other reference to them exists.
        """
        model = dataclasses.replace(self, params=None)
        vars(model)["engine"] = self.engine
        return model

    def speak(
        self,
        text: str | Sequence[str],
        *,
        voice: tuple[Sound, str] | None = None,
        max_seconds: float = 15.0,
        sampling: Sampling | None = None,
        seed: int = 0,
        progress: str = "",
    ) -> Any:
        """Generates speech for one text (returns a `Speech`) or several texts (returns a list).

        Args:
          text: one text or several.
          voice: (recording of the voice to use, transcript of the recording).
          max_seconds: maximum length of an utterance, rounded down to whole frames (at least one).
          sampling: sampling settings; by default, temperature 0.9 and top-p 0.8.
          seed: random seed.
          progress: label of the progress display; none if empty.

        Raises:
          UserError: if a text or the transcript is empty, the recording cannot be used, or
            `max_seconds` or `seed` is out of range.
        """
        texts = [text] if isinstance(text, str) else text
        before = []
        if voice is not None:
            sound, transcript = voice
            before = [self.voice(transcript, self.encode([sound])[0])]
        prompts = [self.text_prompt(t, *before) for t in texts]
        speeches = self.generate_speech(prompts, max_seconds, sampling, seed, progress)
        return speeches[0] if isinstance(text, str) else speeches

    def transcribe(
        self,
        sound: Sound | Sequence[Sound],
        *,
        max_tokens: int = 448,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> Any:
        """Transcribes one recording (returns a string) or several recordings (returns a list).

        Args:
          sound: one or several recordings: files in any format that libsndfile reads, or mono f32
            arrays `[samples]` at the codec's sample rate.
          max_tokens: maximum number of new tokens per recording, including `text_end`.
          sampling: sampling settings, greedy by default.
          seed: random seed.
        """
        single = isinstance(sound, str | Path | np.ndarray)
        codes = self.encode([sound] if single else sound)  # type: ignore[list-item, arg-type]
        texts = self.transcribe_codes(codes, max_tokens=max_tokens, sampling=sampling, seed=seed)
        return texts[0] if single else texts

    def transcribe_codes(
        self,
        codes: Sequence[np.ndarray],
        *,
        max_tokens: int = 448,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        progress: str = "",
        before: Sequence[np.ndarray] = (),
    ) -> list[str]:
        """Transcribes utterances given as codes `[frames, codebooks]`; see `transcribe` and `speak`.

        `before` are spans between BOS and the audio, such as those of `example`.
        """
        prompts = [self.audio_prompt(c, *before) for c in codes]
        found = self.transcribe_prompts(
            prompts, max_tokens=max_tokens, sampling=sampling, seed=seed, progress=progress
        )
        return [transcript.text for transcript in found]

    def transcribe_prompts(
        self,
        prompts: Sequence[np.ndarray],
        *,
        max_tokens: int = 448,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        progress: str = "",
    ) -> list[Transcript]:
        """Continues prompts that end inside a text span, such as those of `audio_prompt`; see `transcribe`."""
        generated = self.engine(
            prompts,
            stop=self.layout.text_end,
            budget=max_tokens,
            sampling=sampling,
            seed=seed,
            progress=progress,
        )
        return [
            Transcript(self.tokenizer.decode(result.ids), result.finished) for result in generated
        ]

    def continue_audio(
        self,
        sound: Sound,
        *,
        max_seconds: float = 15.0,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Speech:
        """Continues a recording and returns only the continuation.

        The arguments are those of `transcribe` (`sound`) and `speak` (the others).
        """
        span = audio_span(self.encode([sound])[0], self.layout, self.codebooks, closes=False)
        return self.generate_speech([self._prompt(span)], max_seconds, sampling, seed)[0]

    def generate_speech(
        self,
        prompts: Sequence[np.ndarray],
        max_seconds: float = 15.0,
        sampling: Sampling | None = None,
        seed: int = 0,
        progress: str = "",
        prompt_numbers: Sequence[int] | None = None,
    ) -> list[Speech]:
        """Continues prompts that end inside an audio span, such as those of `text_prompt`; see `speak`.

        `prompt_numbers` are those of `Engine`.
        """
        if not 0 < max_seconds < float("inf"):
            raise UserError(
                f"max_seconds {max_seconds} is out of range: it must be finite and above 0"
            )
        frames = max(1, int(max_seconds * self.codec.frame_rate))
        generated = self.engine(
            prompts,
            stop=self.layout.audio_end,
            budget=frames * self.codebooks + 1,
            sampling=sampling or Sampling(),
            max_frames=frames,
            seed=seed,
            progress=progress,
            prompt_numbers=prompt_numbers,
        )
        speeches = []
        for result in generated:
            ids = result.ids[result.ids != self.layout.audio_end]
            codes = self.layout.ids_to_codes(ids, self.codebooks)
            # A continuation may be empty, and codecs need not support zero frames.
            audio = self.codec.decode([codes])[0] if len(codes) else np.zeros(0, np.float32)
            speeches.append(Speech(audio, self.codec.sample_rate, codes, result.finished))
        return speeches

    def text_prompt(self, text: str, *before: np.ndarray) -> np.ndarray:
        """Returns the tokens after which the speech of `text` follows, int32; see `speak`.

        Args:
          text: the text, not empty.
          before: spans between BOS and the text.
        """
        return self._prompt(*before, self._text(text), [self.layout.audio_start])

    def audio_prompt(self, codes: np.ndarray, *before: np.ndarray) -> np.ndarray:
        """Returns the tokens after which the transcript of `codes` `[frames, codebooks]` follows, int32.

        Args:
          codes: the utterance.
          before: spans between BOS and the audio.
        """
        return self._prompt(*before, self._audio(codes), [self.layout.text_start])

    def example(self, codes: np.ndarray, text: str) -> np.ndarray:
        """Returns an audio span and the span of its transcript, int32, for few-shot prompts."""
        return np.concatenate([self._audio(codes), self._text(text)])

    def voice(self, text: str, codes: np.ndarray) -> np.ndarray:
        """Returns a text span and the span of its audio, int32, before a text to be spoken."""
        return np.concatenate([self._text(text), self._audio(codes)])

    def encode(self, sounds: Sequence[Sound]) -> list[np.ndarray]:
        """Returns the codes `[frames, codebooks]` of recordings, see `transcribe`."""
        rate = self.codec.sample_rate
        audio = [s if isinstance(s, np.ndarray) else read_audio(s, rate) for s in sounds]
        clips = [np.asarray(clip, np.float32) for clip in audio]
        short = [
            n for n, clip in enumerate(clips) if len(clip) <= piece_samples(self.codec, _PIECE)
        ]
        codes = dict(zip(short, self.codec.encode([clips[n] for n in short]), strict=True))
        return [
            codes[n] if n in codes else encode_long(self.codec, clip, _PIECE)
            for n, clip in enumerate(clips)
        ]

    def _text(self, text: str) -> np.ndarray:
        ids = self.tokenizer.encode(text.strip())
        if not len(ids):
            raise UserError("the text to speak or the transcript of the voice is empty")
        return text_span(ids, self.layout)

    def _audio(self, codes: np.ndarray) -> np.ndarray:
        return audio_span(codes, self.layout, self.codebooks)

    def _prompt(self, *spans: np.ndarray | list[int]) -> np.ndarray:
        return np.concatenate([[self.layout.bos], *spans]).astype(np.int32)


def load(
    workdir: str | Path,
    *,
    step: int | None = None,
    codec: str = "",
    dtype: str = "",
    mesh: Mapping[str, int] | None = None,
) -> SpeechModel:
    """Loads a checkpoint, the tokenizer and the codec from a run's folder.

    Args:
      workdir: the run's folder.
      step: step of the checkpoint; the newest valid one by default.
      codec: codec spec for `load_codec`; by default, the codec in the run's folder.
      dtype: dtype of the weights for decoding, "float32", "bfloat16" or "int8"; by default float32 on a
        CPU, else bfloat16.
      mesh: size of each mesh axis over which weights and rows are split, such as `{"data": 2, "tensor":
        4}`; by default one device.

    Raises:
      UserError: if there is no valid checkpoint, the run was trained on text only, or the tokenizer
        or codec is not the one used in training.
    """
    check_dtype(dtype or DTYPES[0])
    return with_front_end(load_decoder(workdir, step, mesh), workdir, codec=codec, dtype=dtype)


def with_front_end(
    decoder: TrainedDecoder, workdir: str | Path, *, codec: str = "", dtype: str = ""
) -> SpeechModel:
    """Returns a decoder with the tokenizer and the codec in a run's folder; see `load`.

    Raises:
      UserError: if the run was trained on text only, or the tokenizer or codec is not the one used in
        training.
    """
    workdir = Path(workdir)
    layout, metadata = decoder.layout, decoder.metadata
    tokenizer = load_tokenizer(workdir / "tokenizer")
    opened = load_codec(codec or saved_codec(workdir / "codec"))
    trained = FrontEnd.from_metadata(metadata)
    # A converted model may come from a format that stores no codec fingerprint.
    if trained.codec is None and "converted_from" not in metadata:
        raise UserError(
            f"{workdir} was trained on text only: it cannot generate or transcribe speech"
        )
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
            "tokenizer": f"copy the tokenizer of the training data to {workdir / 'tokenizer'}",
            "codec": codec_fix,
            "vocabulary layout": codec_fix,
        },
    )
    return SpeechModel(
        **vars(decoder),
        tokenizer=tokenizer,
        codec=opened,
        codebooks=most_codebooks(metadata["data"]["sources"].values(), layout),
        dtype=dtype,
    )
