"""The generation tasks: speak, transcribe, continue, text.

A task is a generator function. It yields prompts, receives their continuations, and returns a `Result`; it may yield
several times. `soda_jax.generate.pipeline` runs many of them at the same time on one engine. A new task is one function,
registered with `task`; `soda generate batch --task=NAME` then accepts it.
"""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from soda_jax.codecs.audio import read_audio
from soda_jax.errors import UserError
from soda_jax.generate.engine import Job
from soda_jax.generate.pieces import split_recording, split_text
from soda_jax.generate.sampling import GREEDY, Sampling
from soda_jax.generate.speech_model import Sound, SpeechModel
from soda_jax.registry import GENERATION_TASKS
from soda_jax.tokens.documents import audio_span, text_span

# Share of the context that a segment of a recording may take by default; its transcript needs the rest.
_SEGMENT = 0.9
# Characters per second of slow English speech, to estimate what fits into the context.
_CHARACTERS_PER_SECOND = 12.0
_VOICES = 64  # encoded voices that are kept


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """The input of a task.

    Attributes:
      name: name of the item; with the seed it determines the random numbers.
      text: text to be spoken or continued.
      audio: recording to be transcribed or continued, see `Sound`.
      voice: recording of the voice to speak with.
      voice_text: transcript of `voice`.
      more: further columns of a manifest that the task takes, such as the language of a translation.
    """

    name: str
    text: str = ""
    audio: Sound | None = None
    voice: Sound | None = None
    voice_text: str = ""
    more: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """Options of all tasks.

    Attributes:
      max_seconds: maximum length of one generated utterance in seconds.
      max_tokens: maximum number of text tokens of one transcript or continuation.
      piece_characters: a longer text is spoken in pieces of whole sentences, at most this long, or shorter if
        they would not fit into the context; 0 = in one piece.
      segment_seconds: a longer recording is transcribed in segments; 0 = what fits into the context.
      pause_seconds: silence between spoken pieces in seconds.
      examples: (recording, transcript) pairs before each prompt of speak and transcribe, for few-shot prompts.

    Raises:
      UserError: if a value is out of range.
    """

    max_seconds: float = 15.0
    max_tokens: int = 448
    piece_characters: int = 200
    segment_seconds: float = 0.0
    pause_seconds: float = 0.2
    examples: tuple[tuple[Sound, str], ...] = ()

    def __post_init__(self) -> None:
        for name, least, most in (
            ("max_seconds", 0.0, 86_400),
            ("max_tokens", 1, 2**31 - 1),
            ("piece_characters", 0, 2**31 - 1),
            ("segment_seconds", 0.0, 86_400),
            ("pause_seconds", 0.0, 60.0),
        ):
            value = getattr(self, name)
            above = name == "max_seconds"
            if not least <= value <= most or (above and value == 0):
                lower = f"a number above {least:g}, up" if above else f"{least:g}"
                raise UserError(f"{name} {value} is out of range: pass {lower} to {most:,}")


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """Tokens to be continued.

    Attributes:
      ids: int32 `[tokens]`, BOS first.
      kind: what follows: "speech" (up to `audio_end`), "text" (up to `text_end`) or "raw" (text up to EOS).
      piece: position of the continuation in the output.
    """

    ids: np.ndarray
    kind: str
    piece: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation:
    """What a model generated after a prompt.

    Attributes:
      ids: the legal tokens, int32 `[tokens]`, without the stop token; whole frames if they are audio.
      finished: whether the model ended it with the stop token.
      mean_log_probability: mean log-probability of the generated tokens in nats, see `Generated`.
      legal: False if an illegal token followed, which needs `constrained=False`.
    """

    ids: np.ndarray
    finished: bool
    mean_log_probability: float
    legal: bool = True


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a result: a spoken piece of a text, or a segment of a recording.

    Attributes:
      text: its text.
      start, end: its time in seconds in the audio; both 0 if there is no audio.
      finished: whether the model ended it.
      frames: frames of generated audio.
      legal: see `Continuation`.
      mean_log_probability: in nats per token; None if nothing was generated, as for a silent segment.
    """

    text: str
    start: float
    end: float
    finished: bool
    frames: int = 0
    legal: bool = True
    mean_log_probability: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The output of a task.

    Attributes:
      text: the text that was spoken, the transcript, or the continuation of a text.
      parts: its pieces, in order.
      audio: generated audio, f32 mono `[samples]`; None if the task generates text, or before `TaskContext.decode`.
      codes: its codes, uint16 `[frames, codebooks]`, without the pauses; None if the task generates text.
    """

    text: str
    parts: tuple[Part, ...]
    audio: np.ndarray | None = None
    codes: np.ndarray | None = None

    @property
    def finished(self) -> bool:
        """Whether the model ended every part."""
        return all(part.finished for part in self.parts)

    @property
    def legal(self) -> bool:
        """Whether every part is legal, see `Continuation`."""
        return all(part.legal for part in self.parts)


Steps = Generator[list[Prompt], list[Continuation], Result]


class TaskContext:
    """A model and the options of a task, as its function receives them."""

    def __init__(self, model: SpeechModel, options: TaskOptions, decodes: bool = True):
        """Stores the arguments; with `decodes` False, results have codes but no audio, see `decode`."""
        self.model, self.options, self._decodes = model, options, decodes
        self._voices: dict[tuple[str, str], np.ndarray] = {}

    def job(self, prompt: Prompt, number: int, sampling: Sampling) -> Job:
        """Returns the job of a prompt; its length is limited by the options and by the context.

        Raises:
          UserError: if the prompt leaves no room in the context.
        """
        model, layout = self.model, self.model.layout
        room = self.context - len(prompt.ids)
        least = model.codebooks + 1 if prompt.kind == "speech" else 1
        if room < least:
            raise UserError(
                f"the prompt has {len(prompt.ids):,} tokens and the context of the model {self.context:,}: "
                "use a shorter text or recording"
            )
        if prompt.kind == "speech":
            frames = max(1, int(self.options.max_seconds * model.codec.frame_rate))
            frames = min(frames, (room - 1) // model.codebooks)
            budget = frames * model.codebooks + 1
            return Job(prompt.ids, layout.audio_end, budget, frames, number, sampling)
        stop = layout.eos if prompt.kind == "raw" else layout.text_end
        return Job(prompt.ids, stop, min(self.options.max_tokens, room), 0, number, sampling)

    def piece_characters(self, before: Sequence[np.ndarray], text: str) -> int:
        """Returns the longest piece in which a text is spoken after the spans `before`; 0 = in one piece.

        A piece must fit into the context with the speech of it, and without a given voice also the first
        piece and its speech, which are the voice of the later ones.
        """
        longest = self.options.piece_characters
        if not longest:
            return 0
        rate = self.model.codec.frame_rate * self.model.codebooks / _CHARACTERS_PER_SECOND + 1
        room = (self.context - sum(map(len, before)) - 6) / rate
        if len(text) <= min(longest, room):
            return len(text)
        return max(1, min(longest, int(room if before else room / 2)))

    @property
    def context(self) -> int:
        """The number of tokens of the windows that the model was trained on."""
        return self.model.metadata["data"]["sequence_length"]

    @property
    def segment_samples(self) -> int:
        """The longest segment of a recording that is transcribed at once, in samples."""
        codec, seconds = self.model.codec, self.options.segment_seconds
        before = sum(map(len, self.examples_for_transcripts))
        room = _SEGMENT * (self.context - before) / (codec.frame_rate * self.model.codebooks)
        return max(codec.samples_per_frame, int((seconds or room) * codec.sample_rate))

    @cached_property
    def examples_for_transcripts(self) -> list[np.ndarray]:
        """The spans of the examples, audio first."""
        return [self.model.example(codes, text) for codes, text in self._examples]

    @cached_property
    def examples_for_speech(self) -> list[np.ndarray]:
        """The spans of the examples, text first."""
        return [self.model.voice(text, codes) for codes, text in self._examples]

    @cached_property
    def _examples(self) -> list[tuple[np.ndarray, str]]:
        found = self.options.examples
        codes = self.model.encode([sound for sound, _ in found]) if found else []
        return [(c, text) for c, (_, text) in zip(codes, found, strict=True)]

    def voice(self, request: Request) -> list[np.ndarray]:
        """Returns the spans of the voice of a request, an empty list without one."""
        if request.voice is None:
            return []
        if isinstance(request.voice, np.ndarray):
            return [self.model.voice(request.voice_text, self.model.encode([request.voice])[0])]
        key = str(request.voice), request.voice_text
        if key not in self._voices:  # often the same for all requests
            codes = self.model.encode([request.voice])[0]
            while len(self._voices) >= _VOICES:
                del self._voices[next(iter(self._voices))]
            self._voices[key] = self.model.voice(request.voice_text, codes)
        return [self._voices[key]]

    def clip(self, sound: Sound | None) -> np.ndarray:
        """Returns a recording as f32 mono `[samples]` at the rate of the codec."""
        if sound is None:
            raise UserError("the recording is missing")
        if isinstance(sound, np.ndarray):
            if not len(sound):
                raise UserError("the recording has no samples")
            return np.asarray(sound, np.float32)
        return read_audio(sound, self.model.codec.sample_rate)

    def speech(self, spoken: Sequence[tuple[str, Continuation]]) -> Result:
        """Returns the result of spoken pieces (text, continuation), joined with pauses."""
        codec, at = self.model.codec, 0
        parts: list[Part] = []
        codes = [self.model.layout.ids_to_codes(c.ids, self.model.codebooks) for _, c in spoken]
        for (text, found), some in zip(spoken, codes, strict=True):
            at += self.pause_samples if parts else 0
            end = at + len(some) * codec.samples_per_frame
            parts.append(
                _part(text, at / codec.sample_rate, end / codec.sample_rate, found, len(some))
            )
            at = end
        text = " ".join(part.text for part in parts if part.text)
        result = Result(text, tuple(parts), codes=np.concatenate(codes))
        return self.decode(result) if self._decodes else result

    def decode(self, result: Result) -> Result:
        """Returns a result with the audio of its codes."""
        if result.codes is None:
            return result
        clips: list[np.ndarray] = []
        ends = np.cumsum([part.frames for part in result.parts])
        for codes in np.split(result.codes, ends[:-1]):
            if clips:
                clips.append(np.zeros(self.pause_samples, np.float32))
            # A continuation may be empty, and codecs need not support zero frames.
            clips.append(
                self.model.codec.decode([codes])[0] if len(codes) else np.zeros(0, np.float32)
            )
        return dataclasses.replace(result, audio=np.concatenate(clips))

    @property
    def pause_samples(self) -> int:
        """The length of the pause between spoken pieces, in samples."""
        return round(self.options.pause_seconds * self.model.codec.sample_rate)


@dataclasses.dataclass(frozen=True)
class Task:
    """A generation task.

    Attributes:
      function: from a context and a request to the steps.
      needs: columns of a manifest that the task needs, fields of `Request`.
      takes: further columns that it uses.
      sampling: its sampling settings by default.
      options: fields of `TaskOptions` that it uses.
    """

    function: Callable[[TaskContext, Request], Steps]
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    sampling: Sampling
    options: tuple[str, ...]


def task(
    name: str,
    needs: Sequence[str],
    takes: Sequence[str] = (),
    sampling: Sampling | None = None,
    options: Sequence[str] = (),
) -> Callable[[Callable[[TaskContext, Request], Steps]], Any]:
    """Returns a decorator that registers a task; see `Task`. By default it uses all options."""
    every = [field.name for field in dataclasses.fields(TaskOptions)]

    def add(function: Callable[[TaskContext, Request], Steps]) -> Any:
        used = tuple(options or every)
        made = Task(function, tuple(needs), tuple(takes), sampling or Sampling(), used)
        GENERATION_TASKS.register(name)(made)  # type: ignore[type-var]
        return function

    return add


@task(
    "speak",
    ["text"],
    ["voice", "voice_text"],
    options=["max_seconds", "piece_characters", "pause_seconds", "examples"],
)
def speak(context: TaskContext, request: Request) -> Steps:
    """Speaks a text, a long one in pieces.

    Without a given voice, the first piece that the model ends is the voice of the pieces after it.
    """
    model = context.model
    if not request.text.strip():
        raise UserError("the text to speak is empty")
    if bool(request.voice_text.strip()) != (request.voice is not None):
        raise UserError("a voice needs its recording and its transcript: give both or neither")
    before = [*context.examples_for_speech, *context.voice(request)]
    pieces = split_text(request.text, context.piece_characters(before, request.text))

    def prompt(number: int, *voice: np.ndarray) -> Prompt:
        return Prompt(model.text_prompt(pieces[number], *before, *voice), "speech", number)

    if request.voice is not None:
        found = yield [prompt(number) for number in range(len(pieces))]
        return context.speech(list(zip(pieces, found, strict=True)))
    found = []
    while len(found) < len(pieces):
        voice = _first_voice(context, pieces, found)
        later = range(len(found), len(pieces)) if voice else [len(found)]
        prompts = [prompt(number, *voice) for number in later]
        # Slow speech may be too long to be a voice: a piece needs about as much room again.
        room = context.context - sum(map(len, voice))
        found += yield [p if len(p.ids) <= room else prompt(p.piece) for p in prompts]
    return context.speech(list(zip(pieces, found, strict=True)))


@task(
    "transcribe",
    ["audio"],
    sampling=GREEDY,
    options=["max_tokens", "segment_seconds", "examples"],
)
def transcribe(context: TaskContext, request: Request) -> Steps:
    """Transcribes a recording, a long one in segments that are cut at pauses."""
    model, rate = context.model, context.model.codec.sample_rate
    clip = context.clip(request.audio)
    segments = split_recording(clip, rate, context.segment_samples)
    heard = [segment for segment in segments if not segment.silent]
    codes = model.encode([clip[segment.start : segment.end] for segment in heard])
    prompts = [
        Prompt(model.audio_prompt(c, *context.examples_for_transcripts), "text", number)
        for number, c in enumerate(codes)
    ]
    found = iter((yield prompts) if prompts else [])
    parts = []
    for segment in segments:
        start, end = segment.start / rate, segment.end / rate
        if segment.silent:
            parts.append(Part("", start, end, True))
        else:
            continuation = next(found)
            text = model.tokenizer.decode(continuation.ids)
            parts.append(_part(text, start, end, continuation))
    texts = (part.text.strip() for part in parts) if len(parts) > 1 else (parts[0].text,)
    return Result(" ".join(filter(None, texts)), tuple(parts))


@task("continue", ["audio"], options=["max_seconds"])
def continue_audio(context: TaskContext, request: Request) -> Steps:
    """Continues a recording; the result is only the continuation."""
    model = context.model
    codes = model.encode([context.clip(request.audio)])[0]
    span = audio_span(codes, model.layout, model.codebooks, closes=False)
    (found,) = yield [Prompt(np.concatenate([[model.layout.bos], span]).astype(np.int32), "speech")]
    return context.speech([("", found)])


@task("text", ["text"], options=["max_tokens"])
def continue_text(context: TaskContext, request: Request) -> Steps:
    """Continues a text: as a text document if the model was trained on them, else as the text of an utterance."""
    model, layout = context.model, context.model.layout
    ids = model.tokenizer.encode(request.text)
    if not len(ids):
        raise UserError("the text to continue is empty")
    sources = model.metadata["data"].get("sources", {}).values()
    raw = any(source["composition"] == "text" for source in sources)
    body = ids if raw else text_span(ids, layout, closes=False)
    prompt = np.concatenate([[layout.bos], body]).astype(np.int32)
    (found,) = yield [Prompt(prompt, "raw" if raw else "text")]
    text = model.tokenizer.decode(found.ids)
    return Result(text, (_part(text, 0.0, 0.0, found),))


def _first_voice(
    context: TaskContext, pieces: Sequence[str], found: Sequence[Continuation]
) -> list[np.ndarray]:
    """Returns the spans of the first spoken piece that the model ended, as a voice."""
    model = context.model
    for text, continuation in zip(pieces, found, strict=False):
        if continuation.finished and len(continuation.ids):
            codes = model.layout.ids_to_codes(continuation.ids, model.codebooks)
            return [model.voice(text, codes)]
    return []


def _part(text: str, start: float, end: float, found: Continuation, frames: int = 0) -> Part:
    return Part(text, start, end, found.finished, frames, found.legal, found.mean_log_probability)
