"""`soda tokenizer train`: trains a byte-level BPE on the texts of a corpus."""

import argparse

from soda_jax.commands._actions import add_action

SUMMARY = "train a text tokenizer"
EXAMPLE = "soda tokenizer train --input=text.jsonl --vocabulary_size=8192 --output=tokenizer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the action `train` and its options."""
    actions = parser.add_subparsers(dest="action", required=True)
    train = add_action(actions, "train", "train a byte-level BPE", EXAMPLE)
    train.add_argument("--input", required=True, help="a file, or a quoted glob pattern")
    train.add_argument(
        "--format",
        default="text",
        help="format of the corpus: text, manifest (its transcripts), or a published corpus such "
        "as yodas2 (default text)",
    )
    train.add_argument(
        "--vocabulary_size",
        type=int,
        required=True,
        help="maximum number of ids, including BOS and EOS; at least 258",
    )
    train.add_argument("--output", required=True, help="folder for tokenizer.json")


def run(args: argparse.Namespace) -> int:
    """Trains a tokenizer, saves it and returns 0."""
    from soda_jax.tokens.text import train_bpe
    from tokenize_pipeline.options import find_inputs
    from tokenize_pipeline.readers import find_reader, texts

    documents = find_reader(args.format).read(find_inputs(args.input))
    tokenizer = train_bpe(texts(documents), args.vocabulary_size)
    tokenizer.save(args.output)
    print(f"{args.output}: {tokenizer.vocabulary_size:,} ids, fingerprint {tokenizer.fingerprint}")
    return 0
