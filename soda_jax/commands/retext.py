"""`soda retext`: copies a data set with another text tokenizer and the same codes."""

import argparse
import sys

SUMMARY = "copy a data set with another text tokenizer; the codes stay the same"
EXAMPLE = "soda retext data/speech --tokenizer=llama3/tokenizer.json --output=data/speech-llama3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda retext`."""
    parser.add_argument("dataset", help="folder of a finished data set")
    parser.add_argument("--tokenizer", required=True, help="bytes, a tokenizer.json or its folder")
    parser.add_argument("--output", required=True, help="folder of the new data set")
    parser.add_argument(
        "--max_bad_fraction",
        type=float,
        default=0.01,
        help="largest allowed share of utterances that the tokenizer cannot represent (default 0.01)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the new data set; returns 1 if too many utterances are lost, else 0."""
    from soda_jax.data.format.manifest import SPLITS, Manifest
    from tokenize_pipeline.merge import QUARANTINE, TooManyBadInputsError
    from tokenize_pipeline.retext import retext
    from tokenize_pipeline.verify import read_back

    before = Manifest.load(args.dataset)
    try:
        manifest = retext(args.dataset, args.tokenizer, args.output, args.max_bad_fraction)
    except TooManyBadInputsError as error:
        print(f"soda retext: {error}", file=sys.stderr)
        return 1
    tokens = sum(manifest.totals(split)["text_tokens"] for split in SPLITS)
    print(f"{args.output}: {tokens:,} text tokens, vocabulary of {manifest.layout.size:,} ids")
    lost = sum(manifest.quarantined.values()) - sum(before.quarantined.values())
    if lost:
        print(f"  {QUARANTINE}: {lost:,} utterances that the tokenizer cannot represent")
    if warning := read_back(args.output, manifest):
        print(warning)
    return 0
