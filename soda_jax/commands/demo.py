"""`soda demo`: runs the whole pipeline on synthetic speech."""

import argparse

SUMMARY = "run the whole pipeline, from corpus to report, on synthetic speech, in minutes"
EXAMPLE = "soda demo --output=demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda demo`."""
    parser.add_argument("--output", default="demo", help="folder for all results (default demo)")
    parser.add_argument(
        "--clips", type=int, default=5000, help="number of utterances to synthesize (%(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="training steps (default: those of configs/demo.py)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the stages that are not finished, and writes the report."""
    from soda_jax.demo import run_demo

    report = run_demo(args.output, args.clips, args.steps)
    print(f"open {report}")
    return 0
