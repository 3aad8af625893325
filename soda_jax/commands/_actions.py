"""Adds sub-commands with an example in their help, and options for numbers."""

import argparse
from typing import Any


def add_action(actions: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Adds the sub-command `name` to `actions`, the result of `add_subparsers`."""
    return actions.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_number(parser: argparse.ArgumentParser, name: str, default: float, meaning: str) -> None:
    """Adds an option with the type of `default`, which is appended to its help."""
    parser.add_argument(name, type=type(default), default=default, help=f"{meaning} (%(default)s)")
