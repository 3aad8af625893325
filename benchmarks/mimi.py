"""Speed of Mimi's encoder compared with that of transformers: seconds of audio per second.

    .parity/bin/python benchmarks/mimi.py          # after `make parity`, which installs torch
    python benchmarks/mimi.py --dtype=bfloat16     # only ours if torch is not installed

Both sides have the same random weights in the published shape. The clips are noise, because the time does
not depend on the sound. The sides alternate within a repeat. transformers encodes as many clips at
once as fit into memory. On a GPU both use it, and neither rounds f32 to TF32.
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
# Bytes that transformers needs per second of a clip: five arrays of 64 channels at full rate (with three,
# 16 clips of 60 s ran out of 24 GB).
THEIR_BYTES_A_SECOND = 5 * RATE * 64 * 4


def their_encoder(codec: MimiCodec) -> Callable[[np.ndarray], None] | None:
    """Returns `encode` of transformers with the weights of `codec`, None if torch is not installed."""
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
    """Returns the free memory for torch's arrays; infinite if the system does not report it."""
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
    """Returns the number of clips of `seconds` that transformers can encode together in free memory."""
    fitting = 0.8 * available_bytes() / (seconds * THEIR_BYTES_A_SECOND)
    return max(1, int(min(fitting, 1e9)))


def seconds_of(work: Callable[[], object]) -> float:
    """Returns the wall-clock seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(
    sides: dict[str, Callable[[np.ndarray], object]], seconds: int, batch: int, repeats: int
) -> dict[str, float]:
    """Returns the median real-time factor of each side."""
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
    parser.add_argument("--repeats", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--seconds", default="10,60", help="lengths of the clips (%(default)s)")
    parser.add_argument("--batches", default="1,16", help="clips at once (%(default)s)")
    parser.add_argument("--dtype", default="float32", help="dtype of ours: float32, bfloat16")
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
        cells = (
            f"{other:,.1f} | {rates['ours'] / other:.2f}" if other else "torch is not installed | "
        )
        print(f"| {batch} × {seconds} s | {rates['ours']:,.1f} | {cells} |")


if __name__ == "__main__":
    main()
