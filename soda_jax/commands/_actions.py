"""Actions of a sub-command, such as `train` in `soda tokenizer train`."""

import argparse
from typing import Any


def add_action(actions: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Adds an action with an example in its help to `actions`, the result of `add_subparsers`."""
    return actions.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
