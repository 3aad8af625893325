"""Memory of `soda tokenize`, and its growth with the number of documents.

    python benchmarks/pipeline_memory.py [--documents 1000 10000] [--processes 1] [--repeats 1]

A document is one utterance of 0.5 to 1.5 seconds, given by start and end times in a long file of
noise (16-bit WAV, 24 kHz), with a transcript of 24 random words; the codec is the mel codec. Each
job is the whole command in a separate process. The table has the peak resident set (`ru_maxrss`) of
the job and of its largest child process, which includes the memory of the job at the time of the
fork. Target: ten times the documents need at most 1.2 times the memory.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from _machine import describe_machine
from _results import parse, written

from soda_jax.codecs.mel import MelCodec
from soda_jax.progress import track

RATE, FILE_SECONDS = 24_000, 120
AIM = 1.2
WORDS = (*("the", "of", "and", "to", "in", "is", "that", "was"), *("one", "have", "this", "from"))
# Started by a small process, because ru_maxrss of a child includes the parent at the fork.
JOB = """
import json, resource, sys
from soda_jax.cli import main
status = main(sys.argv[1:])
if not status:
    of = resource.getrusage
    print(json.dumps([of(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]))
sys.exit(status)
"""
LAUNCH = """
import subprocess, sys
sys.exit(subprocess.run([sys.executable, "-c", *sys.argv[1:]]).returncode)
"""
KILOBYTE = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss


def make_sounds(folder: Path, count: int, seed: int) -> None:
    """Writes `count` files of noise."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        noise = generator.normal(0, 0.1, FILE_SECONDS * RATE)
        soundfile.write(folder / f"{number}.wav", noise, RATE, subtype="PCM_16")


def write_manifest(path: Path, documents: int, files: int, seed: int) -> float:
    """Writes a manifest with `documents` documents; returns the hours of audio."""
    generator = np.random.default_rng(seed)
    total = 0.0
    with path.open("w") as file:
        for number in range(documents):
            start = round(float(generator.uniform(0, FILE_SECONDS - 2)), 3)
            end = round(start + float(generator.uniform(0.5, 1.5)), 3)
            row = {
                "audio": f"{number * files // documents}.wav",
                "text": " ".join(generator.choice(WORDS, 24)),
                "document": f"recording-{number:08d}",
                "start": start,
                "end": end,
            }
            file.write(json.dumps(row) + "\n")
            total += end - start
    return total / 3600


def peak_megabytes(manifest: Path, codec: str, processes: int) -> tuple[float, float, float]:
    """Returns the MB (10^6 bytes) of the job and of its largest child, and the seconds of the job."""
    output = manifest.parent / "output"
    arguments = ["tokenize", f"--input={manifest}", f"--output={output}", f"--codec={codec}"]
    if processes > 1:
        arguments += [
            f"--workers={processes}",
        ]
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-c", LAUNCH, JOB, *arguments],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"the job has failed:\n{done.stderr[-2000:]}")
    finally:
        shutil.rmtree(output, ignore_errors=True)
    own, children = (value * KILOBYTE / 1e6 for value in json.loads(done.stdout.splitlines()[-1]))
    return own, children, time.perf_counter() - begin


def main() -> None:
    """Makes the corpora, runs the jobs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--documents", type=int, nargs="+", default=[1_000, 10_000], help="per job (%(default)s)"
    )
    parser.add_argument("--processes", type=int, default=1, help="worker processes (%(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="jobs per row (%(default)s)")
    parser.add_argument("--files", type=int, default=20, help="sound files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (%(default)s)")
    args = parse(parser, {"documents": [1_000], "repeats": 1})
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_sounds(folder / "corpus", args.files, args.seed)
        generator = np.random.default_rng(args.seed)
        clips = [generator.normal(0, 0.1, 240_000).astype(np.float32) for _ in range(12)]
        MelCodec.fit(clips, seed=args.seed).save(folder / "codec")
        for documents in track(args.documents, "jobs"):
            path = folder / "corpus" / f"{documents}.jsonl"
            hours = write_manifest(path, documents, args.files, args.seed)
            spec = f"mel:{folder / 'codec'}"
            runs = [peak_megabytes(path, spec, args.processes) for _ in range(args.repeats)]
            rows.append(
                (documents, hours, *(statistics.median(c) for c in zip(*runs, strict=True)))
            )
    with written(args.json) as results:
        for documents, _, own, _, seconds in rows:
            name = f"{documents} documents"
            results.add(f"{name}, memory", "ours", "megabytes", [own], own / rows[0][2])
            results.add(f"{name}, time", "ours", "seconds", [seconds])
    print(f"{describe_machine()}; {args.processes} processes, median of {args.repeats}\n")
    print(
        "| documents | hours | job, MB | its largest child, MB | seconds | job, ratio to the first |"
    )
    print("|---|---|---|---|---|---|")
    for documents, hours, own, child, seconds in rows:
        print(
            f"| {documents:,} | {hours:.2f} | {own:,.0f} | {child:,.0f} | {seconds:.0f} | "
            f"{own / rows[0][2]:.2f} |"
        )
    print(f"\ntarget: at most {AIM} for ten times the documents")


if __name__ == "__main__":
    main()
