"""`soda synth`: writes a small corpus of synthetic speech with exact transcripts."""

import argparse

SUMMARY = "make a small corpus of synthetic speech and text"
EXAMPLE = "soda synth --output=corpus --clips=1200 --task=demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda synth`."""
    parser.add_argument("--output", required=True, help="folder for manifest.jsonl and audio/")
    parser.add_argument("--clips", type=int, default=1200, help="number of clips (%(default)s)")
    parser.add_argument("--texts", type=int, default=1200, help="number of sentences (%(default)s)")
    parser.add_argument(
        "--task",
        choices=("demo", "numbers"),
        default="demo",
        help="demo: up to three digits, short commands; numbers: longer digit strings, numbers, dates",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of texts and audio (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Writes the corpus; existing clips are kept."""
    from soda_jax.errors import UserError
    from tokenize_pipeline.synthetic import synthesize

    for name in ("clips", "texts"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: give at least 1")
    manifest = synthesize(args.output, args.task, args.clips, args.texts, args.seed)
    print(
        f"{manifest}: {args.clips:,} clips; {manifest.with_name('text.jsonl')}: "
        f"{args.texts:,} texts"
    )
    return 0
