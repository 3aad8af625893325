"""`soda tokenize`: turns a corpus into a data set of ArrayRecord shards."""

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from soda_jax.errors import UserError

if TYPE_CHECKING:
    from tokenize_pipeline.options import TokenizeOptions

SUMMARY = "turn a corpus of speech or text into a data set"
EXAMPLE = "soda tokenize --input=corpus/manifest.jsonl --output=data/speech --codec=mel:codec"
PASSES_UNKNOWN_OPTIONS = True  # they arrive as args.unknown and are passed to Beam


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options; with --runner, unknown ones are passed to Beam."""
    parser.add_argument("--input", help="a file, or a quoted pattern of files")
    parser.add_argument("--output", required=True, help="folder of the data set")
    parser.add_argument(
        "--format",
        default="manifest",
        help="reader of the corpus: manifest (JSONL, CSV), text, or a published one such as yodas2",
    )
    parser.add_argument(
        "--codec",
        help="audio codec, as mel:DIR or mimi:DIR; give it for text that is mixed with speech, too",
    )
    parser.add_argument(
        "--tokenizer", help="bytes (default), a tokenizer.json or the folder of one"
    )
    parser.add_argument(
        "--data_root", help="folder that audio paths are relative to (default: the input's)"
    )
    parser.add_argument(
        "--shards",
        type=int,
        default=0,
        help="number of training shards (default: by amount of audio or text)",
    )
    parser.add_argument(
        "--validation_fraction", type=float, default=0.01, help="share held out (default 0.01)"
    )
    parser.add_argument(
        "--max_audio_seconds", type=float, default=3600.0, help="longest utterance (default 3600)"
    )
    parser.add_argument(
        "--max_bad_fraction",
        type=float,
        default=0.01,
        help="share of bad inputs above which the job fails at its end (default 0.01)",
    )
    parser.add_argument(
        "--append", action="store_true", help="add the new documents to a finished data set"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check all files of the data set in --output instead; exit status 1 if it is damaged",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="write nothing; print hours, tokens, shards, disk space and time that the job would need",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="number of processes on this machine (default 1; 0 = one per core)",
    )
    parser.add_argument(
        "--runner", help="run on a cluster: dask, or a runner of Beam such as FlinkRunner"
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
        raise UserError("--input is missing: give a file, or a quoted pattern of files")
    from tokenize_pipeline.options import TokenizeOptions

    names = [field.name for field in dataclasses.fields(TokenizeOptions)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    options = TokenizeOptions(**given, beam_options=tuple(getattr(args, "unknown", ())))
    return _estimate(options) if args.dry_run else _tokenize(options)


def _estimate(options: "TokenizeOptions") -> int:
    from tokenize_pipeline.estimate import estimate

    print(estimate(options).describe(options.output))
    return 0


def _tokenize(options: "TokenizeOptions") -> int:
    from tokenize_pipeline.job import tokenize
    from tokenize_pipeline.merge import TooManyBadInputsError
    from tokenize_pipeline.read_back import read_back

    try:
        summary = tokenize(options)
    except TooManyBadInputsError as error:
        print(f"soda tokenize: {error}", file=sys.stderr)
        return 1
    print(summary.describe(options.output))
    if warning := read_back(options.output, summary.manifest):
        print(warning)
    return 0
