"""Actions of a sub-command, such as `train` in `soda tokenizer train`."""

import argparse
from typing import Any


def add_action(actions: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Adds an action to `actions`, the result of `add_subparsers`; its help ends with `example`."""
    return actions.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_number(parser: argparse.ArgumentParser, name: str, default: float, meaning: str) -> None:
    """Adds an option with default `default` and its type; the help shows the default."""
    parser.add_argument(name, type=type(default), default=default, help=f"{meaning} (%(default)s)")
