"""Scoring and transcribing: this build and Transformers, on the same weights.

    python benchmarks/evaluate.py
    .parity/bin/python benchmarks/evaluate.py --tasks=score --items=64

`score`: log-probabilities of audio tokens, as in sBLIMP, over all ids in f32; a further row is normalized over the ids
that can come next. The mean of both sides is printed: they score the same items with the same weights. Transformers
sorts the items by length and pads them in batches, as we do. `asr`: greedy transcripts of 16 recordings of 5 s at a
time, 40 tokens each, in f32 and in bf16. Weights are random (d 512 × 4 layers, 144,644 ids). The sides run alternately.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _machine import describe_machine
from _results import parse, written
from _sides import Command, Turns, platform_here, take_turns
from train_step import PARITY

from soda_jax.errors import UserError
from soda_jax.files import write_json
from soda_jax.tokens.vocabulary import VocabularyLayout

MODEL = {
    "num_layers": 4, "hidden_size": 512, "intermediate_size": 1536, "num_heads": 8, "num_kv_heads": 4,
    "head_dim": 64,
}  # fmt: skip
TASKS = ("score", "asr")


def write_model(folder: Path) -> int:
    """Writes random weights as Transformers' Qwen3; returns the number of parameters."""
    from safetensors.numpy import save_file

    from soda_jax.convert.architecture import config_json
    from soda_jax.convert.qwen3 import tensor_shapes
    from soda_jax.model import DecoderConfig, RopeConfig, VocabularyBlocks

    layout, rng = VocabularyLayout.soda(), np.random.default_rng(0)
    config = DecoderConfig(
        vocabulary=VocabularyBlocks.of(layout), compute_dtype="float32", tie_embeddings=False,
        rope=RopeConfig(theta=500_000.0, factor=1.0), **MODEL,
    )  # fmt: skip
    tensors = {}
    for name, shape in tensor_shapes(config, layout.size).items():
        drawn = rng.standard_normal(shape, np.float32)
        tensors[name] = np.ones(shape, np.float32) if len(shape) == 1 else drawn * shape[-1] ** -0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config_json(config, layout.bos, layout.eos, 4096, "float32"))
    return sum(values.size for values in tensors.values())


def rates(turns: Turns) -> list[float]:
    """Returns tokens (score) or utterances (asr) per second, for every turn."""
    return [answer["done"] / answer["seconds"] for answer in turns.answers]


def table(task: str, turns: dict[str, Turns], unit: str) -> str:
    """Returns the table of a task as Markdown; ratios are to Transformers."""
    theirs = rates(turns["transformers"]) if "transformers" in turns else []
    lines = [
        f"### {task}", "", f"| side | {unit}, median | turns | side / transformers | mean −log p |",
        "|---|---:|---|---:|---:|",
    ]  # fmt: skip
    for side, found in turns.items():
        if found.missing or not found.answers:
            lines.append(f"| {side}: not measured: {found.missing} | | | | |")
            continue
        values = rates(found)
        pairs = [a / b for a, b in zip(values, theirs, strict=False)]
        ratio = f"{statistics.median(pairs):.2f}" if pairs else "–"
        mean = found.answers[-1].get("mean")
        shown = ", ".join(f"{value:,.4g}" for value in values)
        lines.append(
            f"| {side} | {statistics.median(values):,.4g} | {shown} | {ratio} "
            f"| {'–' if mean is None else f'{mean:.5f}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints a table for each task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS), help="default %(default)s")
    parser.add_argument("--items", type=int, default=32, help="items of score (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (%(default)s)")
    parser.add_argument(
        "--transformers_python",
        default=str(PARITY) if PARITY.exists() else sys.executable,
        metavar="PATH",
        help="interpreter that has transformers; empty to leave this side out",
    )
    args = parse(parser, {"tasks": "score", "items": 4, "rounds": 1, "transformers_python": ""})
    try:
        if unknown := set(args.tasks.split(",")) - set(TASKS):
            raise UserError(f"--tasks: {min(unknown)!r} is unknown: one of {', '.join(TASKS)}")
        platform = platform_here()
        print(f"{describe_machine()}; {platform}\n")
        with written(args.json) as results, tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder))
            for task in args.tasks.split(","):
                order: dict[str, Any] = {
                    "folder": folder, "task": task, "items": args.items, "platform": platform,
                    "dtype": "float32",
                }  # fmt: skip
                sides = {}
                if args.transformers_python:
                    sides["transformers"] = Command(
                        args.transformers_python, "_evaluate_transformers.py", order
                    )
                heads = ("full", "legal") if task == "score" else ("legal",)
                for head in heads:
                    sides[f"ours, {head}"] = Command(
                        sys.executable, "_evaluate_ours.py", {**order, "head": head}
                    )
                if task == "asr":
                    for side, worker in (("ours, legal", "_evaluate_ours.py"),
                                         ("transformers", "_evaluate_transformers.py")):  # fmt: skip
                        if side in sides:
                            narrow = {**order, "dtype": "bfloat16", "head": "legal"}
                            sides[f"{side}, bf16"] = Command(sides[side].python, worker, narrow)
                turns = take_turns(sides, args.rounds, 0.0, platform == "cpu", task)
                unit = "tokens/s" if task == "score" else "utterances/s"
                print(table(task, turns, unit) + "\n", flush=True)
                base = rates(turns["transformers"]) if "transformers" in turns else []
                for side, found in turns.items():
                    if values := rates(found):
                        pairs = [a / b for a, b in zip(values, base, strict=False)]
                        ratio = statistics.median(pairs) if pairs else None
                        name = "tokens_per_second" if task == "score" else "utterances_per_second"
                        results.add(task, side, name, values, ratio)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
