"""Training with the head over legal ids, the head over all ids and Transformers, in one alternating run.

    python benchmarks/head.py                                # d256: 2,048 and 16,384 tokens per step
    python benchmarks/head.py --shapes=135m --batch=1 --rounds=3 --remat=full --transformers_python=  # SODA-135M
    python benchmarks/head.py --shapes=demo,d512 --bfloat16  # small vocabularies, to compare dtypes

Every side trains a model of the same shape, with SODA's vocabulary except for demo and d512, on windows of rendered
documents of random text and codes (`--text_share`). The side "full" is the baseline, this build with
`model.head=full`; `compare.py --baseline=668962a train_step` compares it with the commit before. "legal, every N" adds the
term −log P(legal ids) at one of N positions (`model.full_every`). With `--bfloat16`, "full" and "legal" also run in
bf16 on a CPU; all other sides are f32 there. Transformers computes all logits. A side that is not
installed is reported and left out.
"""

import argparse
import dataclasses
import statistics
import sys
from typing import Any

from _machine import describe_machine
from _results import parse, written
from _sides import Command, Turns, platform_here, take_turns
from train_step import PARITY, Shape, shape_of

from soda_jax.errors import UserError
from soda_jax.tokens.vocabulary import VocabularyLayout

# The model and the vocabulary of configs/demo.py.
DEMO = Shape(4, 192, 512, 4, 2, 48, 256 + 4 + 8 * 256, 256, 8, 256)
D256 = Shape(4, 256, 768, 4, 2, 64, VocabularyLayout.soda().size, 2048, 8, 256)
SHAPES = {
    "demo": DEMO,
    "2k": D256,
    "16k": dataclasses.replace(D256, batch=64),
}


def commands(args: argparse.Namespace, shape: Shape, platform: str) -> dict[str, Command]:
    """Returns the sides of a shape."""
    order: dict[str, Any] = {
        "platform": platform,
        "shape": dataclasses.asdict(shape),
        "text_share": args.text_share,
        "remat": args.remat,
    }
    sides = {
        "full": Command(sys.executable, "_step_ours.py", order),
        "legal": Command(sys.executable, "_step_ours.py", {**order, "head": "legal"}),
    }
    if args.bfloat16:
        narrow = {**order, "compute_dtype": "bfloat16"}
        sides["full, bfloat16"] = Command(sys.executable, "_step_ours.py", narrow)
        narrow = {**narrow, "head": "legal"}
        sides["legal, bfloat16"] = Command(sys.executable, "_step_ours.py", narrow)
    if args.full_every:
        every = {**order, "head": "legal", "full_every": args.full_every}
        sides[f"legal, every {args.full_every}"] = Command(sys.executable, "_step_ours.py", every)
    if args.transformers_python:
        sides["transformers"] = Command(args.transformers_python, "_step_transformers.py", order)
    return sides


def rates(turns: Turns, shape: Shape) -> list[float]:
    """Returns the tokens per second of every turn."""
    return [shape.tokens * a["steps"] / a["seconds"] for a in turns.answers]


def table(name: str, shape: Shape, turns: dict[str, Turns]) -> str:
    """Returns the table of one shape as Markdown, and notes on missing sides."""
    lines = [
        f"### {name}: d {shape.hidden_size} × {shape.num_layers} layers, vocabulary "
        f"{shape.vocabulary:,}, {shape.batch} × {shape.sequence:,} tokens per step",
        "",
        "| side | tokens/s, median | slowest to fastest round | side / full | peak memory |",
        "|---|---:|---|---:|---:|",
    ]
    for side, found in turns.items():
        if found.missing:
            lines.append(f"| {side}: not measured: {found.missing} | | | | |")
            continue
        values = rates(found, shape)
        pairs = [a / b for a, b in zip(values, rates(turns["full"], shape), strict=False)]
        factor = statistics.median(pairs) if pairs else float("nan")
        peak = found.answers[-1]["peak_bytes"] / 1e9
        lines.append(
            f"| {side} | {statistics.median(values):,.0f} | {min(values):,.0f} to {max(values):,.0f} "
            f"| {factor:.2f} | {peak:.2f} GB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints a table for each shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--shapes",
        default="2k,16k",
        help="of demo, d512, 2k, 16k, 135m, 600m, 1.7b (default %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="length of a turn in seconds (%(default)s)"
    )
    parser.add_argument("--batch", type=int, help="windows per step, for all shapes")
    parser.add_argument(
        "--text_share", type=float, default=0.1, help="share of text tokens (%(default)s)"
    )
    parser.add_argument(
        "--full_every", type=int, default=17, help="model.full_every of a side; 0 = no such side"
    )
    parser.add_argument(
        "--remat",
        default="",
        help="of our sides (default: on a CPU none, else the fastest that fits)",
    )
    parser.add_argument("--bfloat16", action="store_true", help="also measure bf16 on a CPU")
    parser.add_argument(
        "--transformers_python",
        default=str(PARITY) if PARITY.exists() else sys.executable,
        metavar="PATH",
        help="interpreter that has transformers; empty to leave this side out",
    )
    args = parse(parser, {"shapes": "2k", "rounds": 1, "transformers_python": ""})
    try:
        if not 0 <= args.text_share < 1:
            raise UserError(f"--text_share={args.text_share} must be at least 0 and below 1")
        platform = platform_here()
        shapes = {}
        for name in args.shapes.split(","):
            shape = SHAPES[name] if name in SHAPES else shape_of(name, None)
            shapes[name] = dataclasses.replace(shape, batch=args.batch or shape.batch)
        print(
            f"{describe_machine()}; {platform}; {args.rounds} rounds; text share "
            f"{args.text_share:.0%}; baseline: head = full\n"
        )
        with written(args.json) as results:
            for name, shape in shapes.items():
                sides = commands(args, shape, platform)
                turns = take_turns(sides, args.rounds, args.seconds, platform == "cpu", name)
                print(table(name, shape, turns))
                print(flush=True)
                base = rates(turns["full"], shape)
                for side, found in turns.items():
                    values = rates(found, shape)
                    if values:
                        pairs = [a / b for a, b in zip(values, base, strict=False)]
                        ratio = statistics.median(pairs) if pairs else None
                        results.add(name, side, "tokens_per_second", values, ratio)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
