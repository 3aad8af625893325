"""Mimi's encoder beside that of transformers: seconds of sound coded in a second, in one run.

    .parity/bin/python benchmarks/mimi.py          # after `make parity`, which installs torch
    python benchmarks/mimi.py --dtype=bfloat16     # ours alone where torch is missing

Random weights in the published shape, the same on both sides; noise, since the time does not depend on
the sound. The sides take turns within a repeat. transformers gets as many clips at once as its memory
holds. On a GPU both use it, and torch is kept from rounding f32 to TF32, as ours is.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from _machine import describe_machine
from _results import parse, written

from soda_jax.codecs.mimi import MimiCodec, MimiConfig
from soda_jax.progress import track

RATE, CODEBOOKS = 24_000, 8
# Bytes that transformers needs for a second of one clip: five arrays of 64 channels at full rate (three
# do not suffice: 16 clips of 60 s were killed in 24 GB).
THEIR_BYTES_A_SECOND = 5 * RATE * 64 * 4


def their_encoder(codec: MimiCodec) -> Callable[[np.ndarray], None] | None:
    """`encode` of transformers with the weights of `codec`, None where torch is not installed."""
    try:
        import torch
        from transformers import MimiModel
    except ImportError:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        codec.save(folder)
        model = MimiModel.from_pretrained(folder).eval().to(device)

    def encode(clips: np.ndarray) -> None:
        with torch.no_grad():
            audio = torch.from_numpy(clips)[:, None].to(device)
            model.encode(audio, num_quantizers=CODEBOOKS).audio_codes.cpu()

    return encode


def available_bytes() -> float:
    """Memory that is free for torch's arrays; infinite where the system does not tell."""
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            return float(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return float("inf")
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def their_clips_at_once(seconds: int) -> int:
    """Clips of `seconds` that transformers can encode together in the memory that is free."""
    fitting = 0.8 * available_bytes() / (seconds * THEIR_BYTES_A_SECOND)
    return max(1, int(min(fitting, 1e9)))


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(
    sides: dict[str, Callable[[np.ndarray], object]], seconds: int, batch: int, repeats: int
) -> dict[str, float]:
    """Median real-time factor of each side."""
    rng = np.random.default_rng(0)
    clips = rng.uniform(-0.3, 0.3, (batch, seconds * RATE)).astype(np.float32)
    at_once = {"ours": batch, "transformers": min(batch, their_clips_at_once(seconds))}
    for side in sides.values():
        side(clips[:1, : 10 * RATE] if seconds > 10 else clips)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in track(range(repeats), f"{batch} clips of {seconds} s"):
        for name, side in sides.items():
            parts = [clips[i : i + at_once[name]] for i in range(0, batch, at_once[name])]
            times[name].append(seconds_of(lambda: [side(part) for part in parts]))  # noqa: B023, called at once
    return {name: batch * seconds / statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="%(default)s")
    parser.add_argument("--seconds", default="10,60", help="lengths of the clips (%(default)s)")
    parser.add_argument("--batches", default="1,16", help="clips at once (%(default)s)")
    parser.add_argument("--dtype", default="float32", help="of ours: float32 or bfloat16")
    args = parse(parser, {"repeats": 2, "seconds": "10", "batches": "1"})

    codec = MimiCodec.random(MimiConfig(), dtype=args.dtype)
    sides: dict[str, Callable[[np.ndarray], object]] = {"ours": lambda c: codec.encode(list(c))}
    if (theirs := their_encoder(codec)) is not None:
        sides["transformers"] = theirs
    rows = [
        (seconds, batch, measure(sides, seconds, batch, args.repeats))
        for seconds in map(int, args.seconds.split(","))
        for batch in map(int, args.batches.split(","))
    ]
    with written(args.json) as results:
        for seconds, batch, rates in rows:
            for side, rate in rates.items():
                ratio = rate / rates["transformers"] if "transformers" in rates else None
                name = f"{batch} x {seconds} s"
                results.add(name, side, "audio_seconds_per_second", [rate], ratio)
    print(
        f"\nMimi encoder, {codec.model.codebooks} codebooks, {args.dtype}, times real time; medians of "
        f"{args.repeats} rounds.\n{describe_machine()}; {len(jax.local_devices())} × "
        f"{jax.local_devices()[0].device_kind}\n"
    )
    print("| clips | ours | transformers, f32 | ratio |\n|---|---|---|---|")
    for seconds, batch, rates in rows:
        other = rates.get("transformers")
        told = (
            f"{other:,.1f} | {rates['ours'] / other:.2f}" if other else "torch is not installed | "
        )
        print(f"| {batch} × {seconds} s | {rates['ours']:,.1f} | {told} |")


if __name__ == "__main__":
    main()
