"""How fast `soda tokenize` turns audio into shards with the mel codec, and what limits it: one table.

    python benchmarks/pipeline.py --minutes=120

The corpus is noise in clips of 3 to 12 seconds (the codec's speed does not depend on what is heard),
16-bit WAV at 24 kHz, so that nothing is resampled, and once at 44.1 kHz, where everything is. "Start and end"
is the time of a job that has one minute of audio: plan, start of the workers, merge.
"""

import argparse
import contextlib
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from _machine import describe_machine

from soda_jax.codecs.audio import read_audio
from soda_jax.codecs.mel import MelCodec
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import Options

SHARDS = 12


def make_corpus(folder: Path, minutes: float, rate: int, seed: int) -> float:
    """Writes clips and manifest; returns the seconds of audio."""
    generator, total = np.random.default_rng(seed), 0.0
    rows: list[dict[str, str]] = []
    folder.mkdir(parents=True)
    while total < minutes * 60:
        seconds = generator.uniform(3, 12)
        sound = generator.normal(0, 0.1, round(seconds * rate))
        name = f"{len(rows):05d}.wav"
        soundfile.write(folder / name, sound, rate, subtype="PCM_16")
        text = "as many words as a person says in a breath " * max(1, round(seconds / 4))
        rows.append({"audio": name, "text": text, "document": str(len(rows) // 4)})
        total += seconds
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return total


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, its progress lines unseen."""
    begin = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        work()
    return time.perf_counter() - begin


def job_seconds(corpus: Path, codec: str, processes: int) -> float:
    """Wall-clock seconds of one whole job, plan, start of the workers and merge included."""
    output = corpus.parent / "output"
    flags = (f"--direct_num_workers={processes}", "--direct_running_mode=multi_processing")
    options = Options(
        str(corpus / "manifest.jsonl"),
        str(output),
        codec=codec,
        shards=SHARDS,
        beam_options=flags if processes > 1 else (),
    )
    try:
        return seconds_of(lambda: tokenize(options))
    finally:
        shutil.rmtree(output, ignore_errors=True)


def main() -> None:
    """Makes the corpora, runs the jobs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120, help="of audio (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="jobs a row (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = np.random.default_rng(args.seed)
        clips = [generator.normal(0, 0.1, 240_000).astype(np.float32) for _ in range(12)]
        codec = MelCodec.fit(clips, seed=args.seed)
        codec.save(folder / "codec")
        rates = (24_000, 44_100)
        corpora = {rate: folder / str(rate) for rate in rates}
        length = max(make_corpus(corpora[r], args.minutes, r, args.seed) for r in rates)
        make_corpus(folder / "small", 1, 24_000, args.seed)
        spec = f"mel:{folder / 'codec'}"

        # The first job of this process imports Beam; a repeat would not.
        job_seconds(folder / "small", spec, 1)
        places = {"one minute": folder / "small"} | {f"{r / 1000:g} kHz": corpora[r] for r in rates}
        jobs: dict[tuple[str, int], list[float]] = {
            (name, processes): [] for processes in (1, 2) for name in places
        }
        # Row by row within a repeat, so that a busy moment of the machine does not fall on one row.
        for _ in range(args.repeats):
            for (name, processes), times in jobs.items():
                times.append(job_seconds(places[name], spec, processes))
        medians = {job: statistics.median(times) for job, times in jobs.items()}
        files = sorted(corpora[24_000].glob("*.wav"))[:60]
        resampled = sorted(corpora[44_100].glob("*.wav"))[:60]
        sounds = [read_audio(file, 24_000) for file in files]
        heard = sum(map(len, sounds)) / 24_000
        parts = {
            "read 24 kHz": lambda: [read_audio(file, 24_000) for file in files],
            "read and resample 44.1 kHz": lambda: [read_audio(file, 24_000) for file in resampled],
            "mel codec, encode": lambda: codec.encode(sounds),
        }
        alone = {
            part: heard / statistics.median(seconds_of(work) for _ in range(args.repeats))
            for part, work in parts.items()
        }
    print(
        f"{args.minutes:g} minutes of audio in {SHARDS} shards, median of {args.repeats} jobs; "
        f"{describe_machine()}\n"
    )
    print("| corpus | processes | audio seconds/s | of it start and end |\n|---|---|---|---|")
    for (name, processes), seconds in medians.items():
        if name != "one minute":
            fixed = medians["one minute", processes]
            print(
                f"| {name} | {processes} | {length / seconds:,.0f} | {fixed:.1f} of {seconds:.1f} s |"
            )
    print("\n| part alone, one process | audio seconds/s |\n|---|---|")
    for part, speed in alone.items():
        print(f"| {part} | {speed:,.0f} |")


if __name__ == "__main__":
    main()
