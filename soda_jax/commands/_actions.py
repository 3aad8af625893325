"""Sub-commands of a command, each with an example in its help."""

import argparse
from typing import Any


def add_action(actions: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Adds the sub-command `name` to `actions`, what `add_subparsers` returned."""
    return actions.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
