"""Decoding at the shape of SODA-135M: this build, the commit before the legal head, Transformers, llama.cpp.

    python benchmarks/generate.py
    python benchmarks/generate.py --dtypes=float32,bfloat16,int8 --cases=1 --baseline=

A case is a number of rows. One row speaks ten seconds after a text. With 16 rows, each continues 3.8
seconds of audio by 2.6 seconds, so that the mean length of the cache is that of ten seconds. Weights are
random, sampling is top-p 0.8. The sides run alternately. The baseline is installed from `--baseline` into
a temporary folder. A side that cannot be built here is named and left out.

The bandwidth bound is the rate at which this machine reads memory, measured in the same run, divided by
the bytes that one token must read: the layers, one codebook of the head, and the keys and values so far.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _machine import describe_machine
from _results import parse, written
from _sides import Command, Turns, platform_here, take_turns
from compare import builds
from train_step import PARITY

from soda_jax.errors import UserError
from soda_jax.model.decoding import DTYPES, check_dtype
from soda_jax.tokens.vocabulary import VocabularyLayout

BEFORE = "6d8ff85"  # a commit before the legal head
MODEL = {
    "num_layers": 15,
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_heads": 8,
    "num_kv_heads": 8,
    "head_dim": 64,
}
CASES = {
    "1": {"batch": 1, "prompt_frames": 0, "frames": 125},
    "16": {"batch": 16, "prompt_frames": 47, "frames": 32},
}


def read_rate() -> float:
    """Returns the rate of summing 240 MB of f32 with JAX in bytes per second, median of 7."""
    import jax
    import jax.numpy as jnp

    array = jnp.ones(60_000_000, jnp.float32)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        total(array).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return array.nbytes / statistics.median(seconds)


def bound(case: dict[str, int], rate: float) -> float:
    """Returns the tokens per second of all rows if only the reading of f32 memory takes time."""
    m, books = MODEL, VocabularyLayout.soda().codebooks
    attention = m["hidden_size"] * m["head_dim"] * (2 * m["num_heads"] + 2 * m["num_kv_heads"])
    layer = attention + 3 * m["hidden_size"] * m["intermediate_size"]
    weights = m["num_layers"] * layer + 2048 * m["hidden_size"]
    length = 24 + books * (case["prompt_frames"] + case["frames"] / 2)
    cache = 2 * m["num_layers"] * m["num_kv_heads"] * m["head_dim"] * length
    return case["batch"] * rate / (4 * (weights + case["batch"] * cache))


@contextlib.contextmanager
def baseline(commit: str) -> Iterator[dict[str, str] | str]:
    """Yields the environment of a Python with the baseline, or the reason why there is none."""
    if not commit:
        yield "not asked for"
        return
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
            environment: dict[str, str] | str = stack.enter_context(builds(commit, folder))[
                0
            ].environment
        except UserError as error:
            environment = str(error)
        yield environment


def commands(
    args: argparse.Namespace, case: dict[str, int], old: dict[str, str] | str, platform: str
) -> dict[str, Command]:
    """Returns the sides of a case."""
    order: dict[str, Any] = {
        "model": MODEL,
        "platform": platform,
        "sampling": args.sampling,
        **case,
    }
    layout = VocabularyLayout.soda()
    theirs = {**order, "vocabulary": layout.size, "codebooks": layout.codebooks}
    sides = {}
    if not isinstance(old, str):
        sides["baseline"] = Command(sys.executable, "_generate_ours.py", order, old)
    for dtype in args.dtypes.split(","):
        sides[f"legal, {dtype}"] = Command(
            sys.executable, "_generate_ours.py", {**order, "dtype": dtype}
        )
    if args.transformers_python:
        python = args.transformers_python
        sides["transformers"] = Command(python, "_generate_transformers.py", theirs)
        for dtype in filter(None, args.llamacpp.split(",")):
            sides[f"llama.cpp, {dtype}"] = Command(
                python, "_generate_llamacpp.py", {**theirs, "dtype": dtype}
            )
    return sides


def rates(turns: Turns) -> list[float]:
    """Returns the tokens per second of all rows together, for every turn."""
    return [a["tokens"] / a["seconds"] for a in turns.answers]


def table(case: dict[str, int], turns: dict[str, Turns], most: float) -> str:
    """Returns the table of one case as Markdown."""
    first = next((rates(found) for found in turns.values() if found.answers), [])
    name = next((side for side, found in turns.items() if found.answers), "")
    lines = [
        f"### {case['batch']} rows, bandwidth bound in f32: {most:,.0f} tokens/s",
        "",
        f"| side | tokens/s, median | turns | side / {name} | share of the bound | first utterance, s |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for side, found in turns.items():
        if found.missing or not found.ready:
            lines.append(f"| {side}: not measured: {found.missing} | | | | | |")
            continue
        values = rates(found)
        middle = statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(values, first, strict=False))
        shown = ", ".join(f"{value:,.1f}" for value in values)
        lines.append(
            f"| {side} | {middle:,.1f} | {shown} | {ratio:.2f} | {middle / most:.2f} "
            f"| {found.ready['first_step']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints a table for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help="numbers of rows (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (%(default)s)")
    parser.add_argument("--dtypes", default="float32", help=f"of {', '.join(DTYPES)} (%(default)s)")
    parser.add_argument(
        "--sampling", default="top-p", choices=("top-p", "greedy"), help="default %(default)s"
    )
    parser.add_argument(
        "--baseline", default=BEFORE, metavar="COMMIT", help="empty to leave it out (%(default)s)"
    )
    parser.add_argument(
        "--transformers_python",
        default=str(PARITY) if PARITY.exists() else sys.executable,
        metavar="PATH",
        help="interpreter that has transformers and xllamacpp; empty to leave these sides out",
    )
    parser.add_argument(
        "--llamacpp", default="f32", help="of f32, f16, q8_0; empty to leave it out (%(default)s)"
    )
    short = {"cases": "1", "rounds": 1, "baseline": "", "transformers_python": ""}
    args = parse(parser, short)
    try:
        if unknown := set(args.cases.split(",")) - set(CASES):
            raise UserError(f"--cases: {min(unknown)!r} is unknown: one of {', '.join(CASES)}")
        platform = platform_here()
        for dtype in args.dtypes.split(","):
            check_dtype(dtype)
        # On an accelerator the workers need the device.
        rate = read_rate() if platform == "cpu" else float("nan")
        print(
            f"{describe_machine()}; {platform}; memory read at {rate / 1e9:.1f} GB/s; {args.sampling}; "
            f"baseline: commit {args.baseline or 'none'}\n"
        )
        with written(args.json) as results, baseline(args.baseline) as old:
            if isinstance(old, str):
                print(f"baseline: not measured: {old}\n")
            for name in args.cases.split(","):
                case = CASES[name]
                # Every turn is one utterance per row.
                turns = take_turns(
                    commands(args, case, old, platform), args.rounds, 0.0, platform == "cpu", name
                )
                print(table(case, turns, bound(case, rate)))
                print(flush=True)
                base = rates(turns["baseline"]) if "baseline" in turns else []
                for side, found in turns.items():
                    if values := rates(found):
                        pairs = [a / b for a, b in zip(values, base, strict=False)]
                        ratio = statistics.median(pairs) if pairs else None
                        results.add(f"{name} rows", side, "tokens_per_second", values, ratio)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
