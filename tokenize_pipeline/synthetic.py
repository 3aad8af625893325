"""Synthesizes a speech corpus with exact transcripts and a small vocabulary, for toy models.

    DIR/manifest.jsonl   speech: one utterance per row, one to three per document
    DIR/audio/000000.wav
    DIR/text.jsonl       text only: {"id": …, "text": …}

Clip i depends only on (task, seed, i), so a larger corpus starts with the clips of a smaller one.
hibari-tts synthesizes the speech with the voice "heart", which is in its wheel (no download).
"""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from soda_jax.codecs.audio import write_wav
from soda_jax.errors import UserError
from soda_jax.files import write_atomic, write_json
from soda_jax.progress import progress

SAMPLE_RATE = 24_000
_VOICE = "heart"
_SPEEDS = (0.9, 1.1)  # range of the speaking rate relative to the voice
_LONGEST_DOCUMENT = 3  # utterances
_QUIET = 0.01  # relative to the peak (−40 dB); quieter samples at both ends are trimmed
_MARGIN = 0.03  # seconds of silence kept at both ends

Task = Literal["demo", "numbers"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
    *("tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth"),
    *("seventeenth", "eighteenth", "nineteenth", "twentieth"),
)
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_DIRECTIONS = ["left", "right", "up", "down", "back"]
_VERBS = ["go", "turn"]
_PLAYER = ["start", "stop", "pause", "open", "close", "play"]


@dataclass(frozen=True)
class Clip:
    """One utterance of the corpus, before synthesis.

    Attributes:
      text: the transcript, in lower-case words.
      document: id of the document.
      order: index of the clip in the document.
      speed: speaking rate relative to that of the voice.
    """

    text: str
    document: str
    order: int
    speed: float


def sample_text(task: Task, generator: random.Random) -> str:
    """Returns a random utterance of the task's vocabulary, lower-case words without punctuation.

    `demo`: one to three digits, or a command such as `stop`, `go left`, `turn back four two` (2,221
    texts with a vocabulary of 18 words). `numbers`: two to five digits, a number below 1,000, a
    date or a command (about 114,000 texts with a vocabulary of 76 words).
    """
    return generator.choice(_SAMPLERS[task])(generator)


def words(task: Task) -> frozenset[str]:
    """Returns the vocabulary of a task."""
    demo = {*DIGITS, *_DIRECTIONS, *_VERBS, "stop"}
    if task == "demo":
        return frozenset(demo)
    days = {*ORDINALS, "thirtieth"}
    return frozenset({*demo, *TEENS, *TENS, *days, *_MONTHS, *_PLAYER, "hundred", "track"})


def clips(task: Task, seed: int) -> Iterator[Clip]:
    """Yields the clips of a corpus; the iterator is infinite."""
    for number in itertools.count():
        generator = random.Random(f"{task} {seed} {number}")
        for order in range(generator.randint(1, _LONGEST_DOCUMENT)):
            text, speed = sample_text(task, generator), round(generator.uniform(*_SPEEDS), 3)
            yield Clip(text, f"{task}-{seed}-{number:06d}", order, speed)


def synthesize(directory: str | Path, task: Task, count: int, texts: int, seed: int = 0) -> Path:
    """Writes a corpus of `count` clips and `texts` sentences; existing clips are kept.

    Args:
      directory: folder of the corpus; it may contain a smaller corpus of the same task and seed.
      task: `demo` or `numbers`.
      count: number of utterances with audio.
      texts: number of text-only sentences.
      seed: seed of the texts, the speaking rates and the noise in the synthesis.

    Returns:
      The path of the manifest.

    Raises:
      UserError: if the directory contains a corpus of another task or seed.
      ModuleNotFoundError: if hibari-tts (extra `demo`) is not installed.
    """
    folder = Path(directory)
    _claim(folder, {"task": task, "seed": seed, "voice": _VOICE})
    chosen = list(itertools.islice(clips(task, seed), count))
    # Files are written atomically, so existing ones are complete.
    missing = [i for i in range(count) if not (folder / _audio_name(i)).exists()]
    speak = _voice() if missing else None
    with progress("speech", count, start=count - len(missing)) as bar:
        for i in missing:
            assert speak is not None
            audio = trim(speak(chosen[i].text, chosen[i].speed, seed + i))
            write_wav(folder / _audio_name(i), audio, SAMPLE_RATE)
            bar.advance()
    manifest = folder / "manifest.jsonl"
    rows: list[dict[str, str | int | float]] = [
        {"audio": _audio_name(i), **asdict(clip), "speaker": _VOICE, "language": "en"}
        for i, clip in enumerate(chosen)
    ]
    generator = random.Random(f"{task} {seed} text")
    sentences: list[dict[str, str | int | float]] = [
        {"id": f"{task}-{seed}-text-{i:06d}", "text": sample_text(task, generator)}
        for i in range(texts)
    ]
    for path, lines in ((manifest, rows), (folder / "text.jsonl", sentences)):
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def trim(audio: np.ndarray) -> np.ndarray:
    """Shortens the silence at both ends to 0.03 s; float32 `[samples]` at 24 kHz."""
    loudness = np.abs(audio)
    loud = np.flatnonzero(loudness > _QUIET * loudness.max(initial=0))
    if len(loud) == 0:
        return audio
    margin = round(_MARGIN * SAMPLE_RATE)
    return audio[max(0, loud[0] - margin) : loud[-1] + margin]


def number_in_words(value: int) -> str:
    """Returns a whole number from 0 to 999 as English words: `three hundred twenty one`."""
    hundreds, rest = divmod(value, 100)
    spoken = [DIGITS[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        spoken += [TENS[rest // 10 - 2], *([DIGITS[rest % 10]] if rest % 10 else [])]
    elif rest or not hundreds:
        spoken.append((*DIGITS, *TEENS)[rest])
    return " ".join(spoken)


def _digits(generator: random.Random, shortest: int, longest: int) -> str:
    return " ".join(generator.choices(DIGITS, k=generator.randint(shortest, longest)))


def _move(generator: random.Random) -> str:
    """Returns `stop`, `go left`, `turn right four`, `turn right four two` or similar."""
    steps = generator.choices((None, 0, 1, 2), weights=(1, 4, 3, 2))[0]
    if steps is None:
        return "stop"
    way = [generator.choice(_VERBS), generator.choice(_DIRECTIONS)]
    return " ".join([*way, *generator.choices(DIGITS, k=steps)])


def _date(generator: random.Random) -> str:
    """Returns a month and a day from 1 to 30: `march third`, `may twenty first`."""
    day = generator.randint(1, 30)
    if day <= 20:
        spoken = ORDINALS[day - 1]
    else:
        spoken = "thirtieth" if day == 30 else f"twenty {ORDINALS[day - 21]}"
    return f"{generator.choice(_MONTHS)} {spoken}"


def _command(generator: random.Random) -> str:
    if generator.random() < 0.5:
        return _move(generator)
    verb = generator.choice(_PLAYER)
    return f"{verb} track {number_in_words(generator.randint(1, 99))}"


_SAMPLERS: dict[Task, tuple[Callable[[random.Random], str], ...]] = {
    "demo": (lambda random: _digits(random, 1, 3), _move),
    "numbers": (
        lambda random: _digits(random, 2, 5),
        lambda random: number_in_words(random.randint(0, 999)),
        _date,
        _command,
    ),
}


def _audio_name(index: int) -> str:
    return f"audio/{index:06d}.wav"


def _claim(folder: Path, settings: dict[str, str | int]) -> None:
    """Writes the settings to the folder; raises UserError if it contains another corpus."""
    note = folder / "synth.json"
    if not note.exists():
        if (folder / "audio").exists():
            raise UserError(f"{folder} contains audio of another corpus: choose another --output")
        write_json(note, settings)
        return
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if found != settings:
        raise UserError(
            f"{folder} contains a corpus made with {found}, not {settings}: choose another --output"
        )


def _voice() -> Callable[[str, float, int], np.ndarray]:
    """Returns a function from (text, speed, seed) to audio, float32 `[samples]` at 24 kHz."""
    import hibari

    # More threads do not speed up clips of about one second (measured).
    engine = hibari.Hibari(voice=_VOICE, threads=1)
    if engine.sample_rate != SAMPLE_RATE:
        raise UserError(
            f"hibari-tts synthesizes at {engine.sample_rate} Hz, not {SAMPLE_RATE}: install 0.2.1"
        )

    def speak(text: str, speed: float, seed: int) -> np.ndarray:
        return np.asarray(engine(text, speed=speed, seed=seed), np.float32)

    return speak
