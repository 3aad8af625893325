"""`soda evaluate`: scores a checkpoint on held-out data."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soda_jax.commands._mesh import add_mesh, parse_mesh
from soda_jax.evaluate.suites import SUITES

SUMMARY = "score a checkpoint: held-out loss, ASR, TTS and the benchmarks of the paper"
EXAMPLE = "soda evaluate --workdir=runs/demo --tasks=loss,swuggy --data=swuggy=sLM21-dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda evaluate`."""
    parser.add_argument("--workdir", required=True, help="workdir of the run")
    parser.add_argument(
        "--tasks",
        help="evaluators: loss, nll, baselines, asr, tts, grammar, retrieval, fad, benchmarks such as swuggy (docs/evaluate.md), "
        "or registered ones (default: those of --suite)",
    )
    parser.add_argument(
        "--suite",
        default="",
        help=f"a named list of tasks: {', '.join(SUITES)} (default: held_out)",
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="TASK=DIR",
        help="folder of a benchmark; may be repeated",
    )
    parser.add_argument(
        "--limit",
        type=int,
        help="items per task, 0 for all (default: 64 for asr, tts, grammar, retrieval and fad, else all)",
    )
    parser.add_argument("--output", help="JSON file (default: WORKDIR/evaluation.json)")
    parser.add_argument("--step", type=int, help="step to score (default: the newest valid one)")
    parser.add_argument("--codec", default="", help="codec, such as mel:DIR, if not WORKDIR/codec")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="folder of a data set that has moved since training; may be repeated",
    )
    parser.add_argument(
        "--max_seconds",
        type=float,
        default=15,
        help="maximum seconds per generated utterance (%(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of sampling, examples and confidence intervals (%(default)s)",
    )
    parser.add_argument(
        "--shots",
        type=int,
        default=0,
        help="examples before each recording of librispeech (%(default)s)",
    )
    parser.add_argument(
        "--recognizer",
        default="whisper",
        help="scores speech: whisper (tiny.en), whisper:DIR (CTranslate2), or a registered one",
    )
    parser.add_argument(
        "--speaker_encoder",
        default="voicefilter",
        help="scores voices: voicefilter, or a registered one (default: %(default)s)",
    )
    add_mesh(parser)
    parser.add_argument(
        "--head",
        default="",
        choices=("full", "legal"),
        help="ids over which losses and likelihoods are normalized: all, or those that can come next "
        "(default: as in training; benchmarks: all, for a model with the legal head both)",
    )
    parser.add_argument(
        "--dtype",
        default="",
        help="weights as float32, bfloat16 or int8 (default: float32 for the loss and on CPUs)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates a checkpoint, prints the scores and writes them as JSON."""
    from soda_jax.errors import UserError

    def folders(option: str, entries: list[str]) -> dict[str, str]:
        found = {}
        for entry in entries:
            name, equals, path = entry.partition("=")
            if not (name and equals and path):
                raise UserError(f"--{option}={entry}: write --{option}=NAME=DIR")
            found[name] = path
        return found

    if args.tasks is not None and args.suite:
        raise UserError("--tasks and --suite: give one of them")
    if args.suite and args.suite not in SUITES:
        raise UserError(f"--suite={args.suite} is unknown: use one of {', '.join(SUITES)}")
    paths, data = folders("source", args.source), folders("data", args.data)

    from soda_jax.evaluate.evaluators import EvaluationOptions, evaluate
    from soda_jax.evaluate.tables import text_report
    from soda_jax.files import check_output, write_json
    from soda_jax.registry import split_names
    from soda_jax.train.program import use_compilation_cache

    tasks = split_names(args.tasks) if args.tasks is not None else SUITES[args.suite or "held_out"]
    output = Path(args.output or Path(args.workdir) / "evaluation.json")
    if args.output or Path(args.workdir).is_dir():
        check_output(output, "--output")
    partial = output.with_name(f"{output.name}.partial")
    options = EvaluationOptions(
        tasks, args.limit, args.step, args.codec, paths, args.max_seconds, args.seed,
        args.head, parse_mesh(args.mesh), args.dtype, data,
        args.recognizer, args.speaker_encoder, args.shots, partial,
    )  # fmt: skip
    use_compilation_cache()
    saved: list[bool] = []

    def save(result: dict[str, Any]) -> None:
        if not saved:
            _keep_other_scores(output, tasks)
            saved.append(True)
        write_json(output, result)

    evaluation = evaluate(args.workdir, options, save)
    print(text_report(evaluation))
    print(f"\nwritten to {output}")
    return 0


def _keep_other_scores(output: Path, tasks: Sequence[str]) -> None:
    """Renames an existing output if it has scores of other tasks, which would be lost."""
    try:
        earlier = json.loads(output.read_text("utf-8"))["tasks"]
        others = [str(task) for task in earlier if task not in tasks]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if others:
        number = 1
        while (kept := output.with_name(f"{output.stem}-{number}{output.suffix}")).exists():
            number += 1
        output.rename(kept)
        print(f"{output} has scores of {', '.join(others)}: kept as {kept}", file=sys.stderr)
