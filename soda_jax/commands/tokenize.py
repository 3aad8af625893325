"""`soda tokenize`: turns a corpus into a data set of ArrayRecord shards."""

import argparse
import dataclasses
import sys

from soda_jax.errors import UserError
from tokenize_pipeline.options import TokenizeOptions

SUMMARY = "turn a corpus of speech or text into a data set"
EXAMPLE = "soda tokenize --input=corpus/manifest.jsonl --output=data/speech --codec=mel:codec"
PASSES_UNKNOWN_OPTIONS = True  # unknown options are in args.unknown and are passed to Beam
_OPTIONS = [field for field in dataclasses.fields(TokenizeOptions) if field.name != "beam_options"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of `TokenizeOptions`, and --verify and --dry_run."""
    for field in _OPTIONS:
        name, text = f"--{field.name}", field.metadata["doc"]
        if field.type is bool:
            parser.add_argument(name, action="store_true", help=text)
            continue
        required = field.default is dataclasses.MISSING
        parser.add_argument(
            name,
            type=field.type if field.type in (int, float) else str,
            default=None if required else field.default,
            required=required and field.name != "input",  # --verify needs no input
            help=text,
        )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check all files of the data set in --output instead; exit status 1 if it is damaged",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="write nothing; tokenize the first utterances, and print the hours, tokens, shards, disk "
        "space and time of the job",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the job; returns 0, or 1 if too many inputs are bad or the data set is damaged."""
    if args.verify:
        from soda_jax.commands._verify import print_faults

        if unknown := getattr(args, "unknown", ()):
            raise UserError(
                f"option {unknown[0]} is unknown to --verify, which takes only --output"
            )
        return print_faults(args.output)
    if args.input is None:
        raise UserError("--input is missing: give a file, or a quoted glob pattern")
    given = {field.name: getattr(args, field.name) for field in _OPTIONS}
    options = TokenizeOptions(**given, beam_options=tuple(getattr(args, "unknown", ())))
    if args.dry_run:
        from tokenize_pipeline.estimate import estimate

        print(estimate(options).describe(options.output))
        return 0
    from tokenize_pipeline.job import tokenize
    from tokenize_pipeline.merge import TooManyBadInputsError
    from tokenize_pipeline.verify import read_back

    try:
        summary = tokenize(options)
    except TooManyBadInputsError as error:
        print(f"soda tokenize: {error}", file=sys.stderr)
        return 1
    print(summary.describe(options.output))
    if warning := read_back(options.output, summary.manifest):
        print(warning)
    return 0
