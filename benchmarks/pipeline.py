"""How fast `soda tokenize` turns audio into shards with the mel codec, what limits it, and what a second process brings.

    python benchmarks/pipeline.py [--minutes 120] [--hours 36] [--repeats 3]

The corpus is noise in clips of 3 to 12 seconds (the codec's speed does not depend on what is heard),
16-bit WAV at 24 kHz, so that nothing is resampled, and once at 44.1 kHz, where everything is.

The first table is of jobs as they run unless told otherwise: one process, whose numerical libraries take
all cores. The second compares one process of one thread with two processes of one thread each: the
whole command, from its start to its end, on `--hours` of audio, in which the clips come again and again
under other document ids. Each round runs all jobs once, in turn, so that a slow moment of the machine
meets all of them. "Start and end" is a job on one minute of audio: imports, plan, start of the workers,
merge.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import soundfile
from _machine import describe_machine

from soda_jax.codecs.audio import read_audio
from soda_jax.codecs.mel import MelCodec
from soda_jax.progress import track
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import Options

SHARDS = 16
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
PROCESSES = (1, 2)


def make_clips(folder: Path, minutes: float, rate: int, seed: int) -> list[tuple[str, float]]:
    """Writes clips of noise; returns the name and the seconds of each."""
    generator = np.random.default_rng(seed)
    clips: list[tuple[str, float]] = []
    folder.mkdir(parents=True)
    while sum(seconds for _, seconds in clips) < minutes * 60:
        samples = round(generator.uniform(3, 12) * rate)
        name = f"{len(clips):05d}.wav"
        soundfile.write(folder / name, generator.normal(0, 0.1, samples), rate, subtype="PCM_16")
        clips.append((name, samples / rate))
    return clips


def write_manifest(path: Path, clips: list[tuple[str, float]], seconds: float = 0.0) -> float:
    """A manifest of the clips, over and over until there are `seconds`; returns the seconds of audio."""
    total, rows = 0.0, 0
    with path.open("w") as file:
        while rows < len(clips) or total < seconds:
            name, length = clips[rows % len(clips)]
            text = "as many words as a person says in a breath " * max(1, round(length / 4))
            row = {"audio": name, "text": text, "document": str(rows // 4)}
            file.write(json.dumps(row) + "\n")
            total, rows = total + length, rows + 1
    return total


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, its progress lines unseen."""
    begin = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        work()
    return time.perf_counter() - begin


def job_seconds(manifest: Path, codec: str) -> float:
    """Wall-clock seconds of one whole job in this process."""
    output = manifest.parent / "output"
    options = Options(str(manifest), str(output), codec=codec, shards=SHARDS)
    try:
        return seconds_of(lambda: tokenize(options))
    finally:
        shutil.rmtree(output, ignore_errors=True)


def command_seconds(manifest: Path, codec: str, processes: int) -> float:
    """Wall-clock seconds of the command, each of its working processes with one thread."""
    output = manifest.parent / "output"
    command = [
        *(sys.executable, "-m", "soda_jax.cli", "tokenize", f"--input={manifest}"),
        *(f"--output={output}", f"--codec={codec}", f"--shards={SHARDS}"),
    ]
    if processes > 1:
        command += [
            f"--direct_num_workers={processes}",
            "--direct_running_mode=multi_processing",
        ]
    begin = time.perf_counter()
    try:
        subprocess.run(
            command, env={**os.environ, **ONE_THREAD}, check=True, capture_output=True, text=True
        )
        return time.perf_counter() - begin
    finally:
        shutil.rmtree(output, ignore_errors=True)


def measure(jobs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each job, by name: all jobs once in each of `repeats` rounds."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in track(range(repeats), "rounds"):
        for name, job in jobs.items():
            times[name].append(job())
    return times


def print_one_process(folder: Path, minutes: float, codec: str, repeats: int, seed: int) -> None:
    """The first table: one process, all cores."""
    rates = (24_000, 44_100)
    lengths, jobs = {}, {"one minute": lambda: job_seconds(folder / "small/m.jsonl", codec)}
    for rate in rates:
        path = folder / str(rate) / "m.jsonl"
        clips = make_clips(path.parent, minutes, rate, seed)
        lengths[f"{rate / 1000:g} kHz"] = write_manifest(path, clips)
        jobs[f"{rate / 1000:g} kHz"] = lambda path=path: job_seconds(path, codec)
    job_seconds(folder / "small/m.jsonl", codec)  # imports Beam, which a repeat would not
    times = {name: statistics.median(found) for name, found in measure(jobs, repeats).items()}
    print(f"one process, {minutes:g} minutes of audio in {SHARDS} shards, median of {repeats}\n")
    print("| corpus | audio seconds/s | of it start and end |\n|---|---|---|")
    for name, length in lengths.items():
        fixed = f"{times['one minute']:.1f} of {times[name]:.1f} s"
        print(f"| {name} | {length / times[name]:,.0f} | {fixed} |")


def print_two_processes(folder: Path, hours: float, codec: str, repeats: int) -> None:
    """The second table: one thread against two processes of one thread each."""
    clips = [(p.name, soundfile.info(p).duration) for p in sorted(folder.glob("24000/*.wav"))]
    path = folder / "24000" / "long.jsonl"
    length = write_manifest(path, clips, hours * 3600)
    small = folder / "small" / "m.jsonl"
    jobs = {f"start {n}": lambda n=n: command_seconds(small, codec, n) for n in PROCESSES}
    jobs |= {f"whole {n}": lambda n=n: command_seconds(path, codec, n) for n in PROCESSES}
    times = measure(jobs, repeats)
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"\nthe whole command, {length / 3600:.1f} hours of audio, median of {repeats}\n")
    print("| processes of one thread | audio seconds/s | of it start and end |\n|---|---|---|")
    for n in PROCESSES:
        fixed = f"{medians[f'start {n}']:.1f} of {medians[f'whole {n}']:.1f} s"
        print(f"| {n} | {length / medians[f'whole {n}']:,.0f} | {fixed} |")
    ratios = [one / two for one, two in zip(times["whole 1"], times["whole 2"], strict=True)]
    print(
        f"\ntwo processes are {medians['whole 1'] / medians['whole 2']:.2f} times as fast as one "
        f"({min(ratios):.2f} to {max(ratios):.2f} in the rounds)"
    )


def print_parts(folder: Path, codec: MelCodec, repeats: int) -> None:
    """The third table: what a job is made of, in one process."""
    files = {rate: sorted(folder.glob(f"{rate}/*.wav"))[:60] for rate in (24_000, 44_100)}
    sounds = [read_audio(file, 24_000) for file in files[24_000]]
    heard = sum(map(len, sounds)) / 24_000
    parts = {
        "read 24 kHz": lambda: [read_audio(file, 24_000) for file in files[24_000]],
        "read and resample 44.1 kHz": lambda: [read_audio(file, 24_000) for file in files[44_100]],
        "mel codec, encode": lambda: codec.encode(sounds),
    }
    print("\n| part alone, one process | audio seconds/s |\n|---|---|")
    for name, work in parts.items():
        print(
            f"| {name} | {heard / statistics.median(seconds_of(work) for _ in range(repeats)):,.0f} |"
        )


def main() -> None:
    """Makes the corpora, runs the jobs and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=120, help="of distinct audio (%(default)s)"
    )
    parser.add_argument("--hours", type=float, default=36, help="second table (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = np.random.default_rng(args.seed)
        clips = [generator.normal(0, 0.1, 240_000).astype(np.float32) for _ in range(12)]
        codec = MelCodec.fit(clips, seed=args.seed)
        codec.save(folder / "codec")
        spec = f"mel:{folder / 'codec'}"
        small = make_clips(folder / "small", 1, 24_000, args.seed)
        write_manifest(folder / "small" / "m.jsonl", small)
        print(f"{describe_machine()}\n")
        print_one_process(folder, args.minutes, spec, args.repeats, args.seed)
        print_two_processes(folder, args.hours, spec, args.repeats)
        print_parts(folder, codec, args.repeats)


if __name__ == "__main__":
    main()
