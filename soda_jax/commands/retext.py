"""`soda retext`: the same codes under another text tokenizer."""

import argparse

SUMMARY = "give a data set another text tokenizer, codes untouched"
EXAMPLE = "soda retext data/speech --tokenizer=llama3/tokenizer.json --output=data/speech-llama3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("dataset", help="folder of a finished data set")
    parser.add_argument(
        "--tokenizer", required=True, help="bytes, a tokenizer.json or the folder of one"
    )
    parser.add_argument("--output", required=True, help="folder of the new data set")


def run(args: argparse.Namespace) -> int:
    """Writes the new data set."""
    from tokenize_pipeline.retext import retext

    manifest = retext(args.dataset, args.tokenizer, args.output)
    tokens = sum(manifest.totals(split)["text_tokens"] for split in ("train", "validation"))
    print(f"{args.output}: {tokens:,} text tokens, vocabulary of {manifest.layout.size:,} ids")
    return 0
