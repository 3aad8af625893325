"""`soda evaluate`: scores a checkpoint on held-out data."""

import argparse
from pathlib import Path

from soda_jax.commands._mesh import add_mesh, parse_mesh

SUMMARY = "score a checkpoint: held-out loss, baselines, ASR, TTS, sampling without the grammar"
EXAMPLE = "soda evaluate --workdir=runs/demo --tasks=loss,baselines --limit=64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda evaluate`."""
    parser.add_argument("--workdir", required=True, help="workdir of the run")
    parser.add_argument(
        "--tasks",
        default="loss,baselines,asr,tts",
        help="evaluators: loss, baselines, asr, tts, or registered ones (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=64,
        help="utterances for asr, tts and grammar, 0 for all (%(default)s)",
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
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (%(default)s)")
    add_mesh(parser)
    parser.add_argument(
        "--head",
        default="",
        choices=("full", "legal"),
        help="ids over which the loss is normalized: all, or those that can come next (default: as "
        "in training)",
    )
    parser.add_argument(
        "--dtype",
        default="",
        help="weights as float32, bfloat16 or int8 (default: float32 for the loss and on CPUs)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates a checkpoint, prints the scores and writes them as JSON."""
    from soda_jax.errors import UserError

    paths = {}
    for entry in args.source:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise UserError(f"--source={entry}: write NAME=DIR")
        paths[name] = path

    from soda_jax.evaluate.evaluators import EvaluationOptions, evaluate
    from soda_jax.evaluate.tables import text_report
    from soda_jax.files import write_json
    from soda_jax.registry import split_names
    from soda_jax.train.program import use_compilation_cache

    tasks = split_names(args.tasks)
    options = EvaluationOptions(
        tasks, args.limit, args.step, args.codec, paths, args.max_seconds, args.seed,
        args.head, parse_mesh(args.mesh), args.dtype,
    )  # fmt: skip
    use_compilation_cache()
    evaluation = evaluate(args.workdir, options)
    print(text_report(evaluation))
    output = Path(args.output or Path(args.workdir) / "evaluation.json")
    write_json(output, evaluation)
    print(f"\nwritten to {output}")
    return 0
