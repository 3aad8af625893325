"""Actions of a sub-command, such as `train` in `soda tokenizer train`."""

import argparse
import math
from typing import Any

from soda_jax.errors import UserError


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


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the options of commands that run in several processes."""
    processes = parser.add_argument_group(
        "processes", "multi-process runs; not needed with Slurm, Open MPI, Cloud TPU or Kubernetes"
    )
    processes.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    processes.add_argument(
        "--processes", type=int, metavar="N", help="number of processes (1 = single-process)"
    )
    processes.add_argument("--process", type=int, metavar="I", help="index of this process, from 0")


def add_near_best(parser: argparse.ArgumentParser) -> None:
    """Adds the option that leaves out the runs far above the best of their budget."""
    add_number(
        parser,
        "--near_best",
        0.0,
        "use only runs this many nats above the best of their budget; 0 = all",
    )


def check_near_best(nats: float) -> None:
    """Raises UserError if the value of `--near_best` is invalid."""
    if not 0 <= nats < math.inf:
        raise UserError(f"--near_best={nats} must be a number of nats, at least 0")


def selection(texts: list[str]) -> dict[str, str]:
    """Returns --select COLUMN=VALUE as column -> value."""
    select: dict[str, str] = {}
    for text in texts:
        column, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--select {text} must be COLUMN=VALUE")
        if column in select:
            raise UserError(f"--select {text}: {column} already has the value {select[column]}")
        select[column] = value
    return select
