"""Speed of `soda tokenize` with the mel codec, what limits it, and the speedup from a second process.

    python benchmarks/pipeline.py [--minutes 120] [--hours 36] [--repeats 3]

The corpus is noise in clips of 3 to 12 seconds (the codec's speed does not depend on the sound). It
is stored as 16-bit WAV at 24 kHz, which needs no resampling, as WAV at 44.1 kHz, which does, as
FLAC, as MP3, and as MP3 without its Xing/Info frame, so that the reader must count the frames. MP3
files have a constant bitrate, because only then is a length estimated from the size nearly right.

The first table measures jobs with default options: one process, whose numerical libraries use
all cores. The second compares one process of one thread with two processes of one thread each: the
whole command, from start to end, on `--hours` of audio, in which the clips are repeated with other
document ids. Each round runs every job once, so that a slow phase of the machine affects all of them.
"Start and end" is the time of a job on one minute of audio: plan, merge and, for the whole command,
imports and the start of the workers. The third table has the speed of the parts of a job.
"""

import argparse
import contextlib
import dataclasses
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
from typing import Any

import numpy as np
import soundfile
from _machine import describe_machine
from _results import Results, parse, written

from soda_jax.codecs.audio import read_audio
from soda_jax.codecs.mel import MelCodec
from soda_jax.progress import track
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions

SHARDS = 16
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
PROCESSES = (1, 2)
RATE_UNIT = "audio_seconds_per_second"


@dataclasses.dataclass(frozen=True)
class Form:
    """How the clips are stored.

    Attributes:
      folder: name of the folder.
      rate: Hz.
      suffix: of the files.
      options: of `soundfile.write`.
      bare: remove the first MPEG frame, which contains the number of frames.
    """

    folder: str
    rate: int
    suffix: str
    options: dict[str, Any]
    bare: bool = False

    def write(self, path: Path, samples: np.ndarray) -> None:
        """Writes one clip, float `[samples]`."""
        soundfile.write(path, samples, self.rate, **self.options)
        if self.bare:
            content = path.read_bytes()
            path.write_bytes(content[content.index(content[:2], 4) :])


MP3 = {"bitrate_mode": "CONSTANT", "compression_level": 0.5}
FORMS = {
    "24 kHz WAV": Form("wav24", 24_000, "wav", {"subtype": "PCM_16"}),
    "44.1 kHz WAV": Form("wav44", 44_100, "wav", {"subtype": "PCM_16"}),
    "24 kHz FLAC": Form("flac", 24_000, "flac", {}),
    "24 kHz MP3": Form("mp3", 24_000, "mp3", MP3),
    "24 kHz MP3, frames counted": Form("bare", 24_000, "mp3", MP3, bare=True),
}
WAV = FORMS["24 kHz WAV"]


def make_clips(folder: Path, minutes: float, form: Form, seed: int) -> list[tuple[str, float]]:
    """Writes clips of noise; returns the name and the seconds of each."""
    generator = np.random.default_rng(seed)
    clips: list[tuple[str, float]] = []
    folder.mkdir(parents=True)
    while sum(seconds for _, seconds in clips) < minutes * 60:
        samples = round(generator.uniform(3, 12) * form.rate)
        name = f"{len(clips):05d}.{form.suffix}"
        form.write(folder / name, generator.normal(0, 0.1, samples))
        clips.append((name, samples / form.rate))
    return clips


def write_manifest(path: Path, clips: list[tuple[str, float]], seconds: float = 0.0) -> float:
    """Writes a manifest that repeats the clips until there are `seconds`; returns the seconds of audio."""
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
    """Returns the wall-clock seconds of one call; hides its progress bar."""
    begin = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        work()
    return time.perf_counter() - begin


def job_seconds(manifest: Path, codec: str) -> float:
    """Returns the wall-clock seconds of one whole job in this process."""
    output = manifest.parent / "output"
    options = TokenizeOptions(str(manifest), str(output), codec=codec, shards=SHARDS)
    try:
        return seconds_of(lambda: tokenize(options))
    finally:
        shutil.rmtree(output, ignore_errors=True)


def command_seconds(manifest: Path, codec: str, processes: int) -> float:
    """Returns the wall-clock seconds of the command with one thread per worker process."""
    output = manifest.parent / "output"
    command = [
        *(sys.executable, "-m", "soda_jax.cli", "tokenize", f"--input={manifest}"),
        *(f"--output={output}", f"--codec={codec}", f"--shards={SHARDS}"),
    ]
    if processes > 1:
        command.append(f"--workers={processes}")
    begin = time.perf_counter()
    try:
        subprocess.run(
            command, env={**os.environ, **ONE_THREAD}, check=True, capture_output=True, text=True
        )
        return time.perf_counter() - begin
    finally:
        shutil.rmtree(output, ignore_errors=True)


def measure(jobs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of each job, by name: all jobs once in each of `repeats` rounds."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in track(range(repeats), "rounds"):
        for name, job in jobs.items():
            times[name].append(job())
    return times


def print_one_process(folder: Path, codec: str, args: argparse.Namespace, results: Results) -> None:
    """Measures and prints the first table: one process, all cores."""
    lengths, jobs = {}, {"one minute": lambda: job_seconds(folder / "small/m.jsonl", codec)}
    for name, form in FORMS.items():
        path = folder / form.folder / "m.jsonl"
        clips = make_clips(path.parent, args.minutes, form, args.seed)
        lengths[name] = write_manifest(path, clips)
        jobs[name] = lambda path=path: job_seconds(path, codec)
    job_seconds(folder / "small/m.jsonl", codec)  # the first job also imports its libraries
    found = measure(jobs, args.repeats)
    for name, length in lengths.items():
        rates = [length / seconds for seconds in found[name]]
        results.add(f"job, {name}", "ours", RATE_UNIT, rates)
    results.add("job, one minute", "ours", "seconds", found["one minute"])
    times = {name: statistics.median(seconds) for name, seconds in found.items()}
    minutes, repeats = args.minutes, args.repeats
    print(f"one process, {minutes:g} minutes of audio in {SHARDS} shards, median of {repeats}\n")
    print("| corpus | audio seconds/s | start and end |\n|---|---|---|")
    for name, length in lengths.items():
        fixed = f"{times['one minute']:.1f} of {times[name]:.1f} s"
        print(f"| {name} | {length / times[name]:,.0f} | {fixed} |")


def print_two_processes(
    folder: Path, codec: str, args: argparse.Namespace, results: Results
) -> None:
    """Measures and prints the second table: one process and two processes, one thread each."""
    repeats = args.repeats
    sounds = sorted((folder / WAV.folder).glob("*.wav"))
    clips = [(p.name, soundfile.info(p).duration) for p in sounds]
    path = folder / WAV.folder / "long.jsonl"
    length = write_manifest(path, clips, args.hours * 3600)
    small = folder / "small" / "m.jsonl"
    jobs = {f"start {n}": lambda n=n: command_seconds(small, codec, n) for n in PROCESSES}
    jobs |= {f"whole {n}": lambda n=n: command_seconds(path, codec, n) for n in PROCESSES}
    times = measure(jobs, repeats)
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"\nthe whole command, {length / 3600:.1f} hours of audio, median of {repeats}\n")
    print("| processes of one thread | audio seconds/s | start and end |\n|---|---|---|")
    for n in PROCESSES:
        fixed = f"{medians[f'start {n}']:.1f} of {medians[f'whole {n}']:.1f} s"
        print(f"| {n} | {length / medians[f'whole {n}']:,.0f} | {fixed} |")
    ratios = [one / two for one, two in zip(times["whole 1"], times["whole 2"], strict=True)]
    for n in PROCESSES:
        rates = [length / seconds for seconds in times[f"whole {n}"]]
        ratio = medians["whole 1"] / medians[f"whole {n}"]
        results.add(f"command, {n} processes", "ours", RATE_UNIT, rates, ratio)
        results.add(f"command, {n} processes, start", "ours", "seconds", times[f"start {n}"])
    print(
        f"\ntwo processes are {medians['whole 1'] / medians['whole 2']:.2f} times as fast as one "
        f"({min(ratios):.2f} to {max(ratios):.2f} in the rounds)"
    )


def print_parts(folder: Path, codec: MelCodec, repeats: int, results: Results) -> None:
    """Measures and prints the third table: the parts of a job, in one process."""
    parts: dict[str, Callable[[], object]] = {}
    for name, form in FORMS.items():
        files = sorted((folder / form.folder).glob(f"*.{form.suffix}"))[:60]
        parts[f"read {name}"] = lambda files=files: [read_audio(file, 24_000) for file in files]
    sounds = [read_audio(file, 24_000) for file in sorted((folder / WAV.folder).glob("*.wav"))[:60]]
    seconds = sum(map(len, sounds)) / 24_000
    parts["mel codec, encode"] = lambda: codec.encode(sounds)
    times: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(repeats + 1):
        for name, work in parts.items():
            taken = seconds_of(work)
            if number:  # the first reading fills the page cache
                times[name].append(taken)
    print("\n| part, one process | audio seconds/s |\n|---|---|")
    for name, taken_each in times.items():
        results.add(name, "ours", RATE_UNIT, [seconds / taken for taken in taken_each])
        print(f"| {name} | {seconds / statistics.median(taken_each):,.0f} |")


def main() -> None:
    """Makes the corpora, runs the jobs and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=120, help="minutes of distinct audio (%(default)s)"
    )
    parser.add_argument(
        "--hours", type=float, default=36, help="of the second table; 0 skips it (%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (%(default)s)")
    args = parse(parser, {"minutes": 10.0, "hours": 0.0, "repeats": 3})
    with written(args.json) as results, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = np.random.default_rng(args.seed)
        clips = [generator.normal(0, 0.1, 240_000).astype(np.float32) for _ in range(12)]
        codec = MelCodec.fit(clips, seed=args.seed)
        codec.save(folder / "codec")
        spec = f"mel:{folder / 'codec'}"
        small = make_clips(folder / "small", 1, WAV, args.seed)
        write_manifest(folder / "small" / "m.jsonl", small)
        print(f"{describe_machine()}\n")
        print_one_process(folder, spec, args, results)
        if args.hours:
            print_two_processes(folder, spec, args, results)
        print_parts(folder, codec, args.repeats, results)


if __name__ == "__main__":
    main()
