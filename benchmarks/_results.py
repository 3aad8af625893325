"""Collects the rows of a benchmark: `--json FILE` writes them, and `compare.py` reads them."""

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import soda_jax
from soda_jax.files import write_atomic


@dataclasses.dataclass
class Results:
    """The rows of one run.

    Attributes:
      rows: the rows that `add` has collected, in order.
    """

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(
        self, name: str, side: str, unit: str, values: Sequence[float], ratio: float | None = None
    ) -> None:
        """Adds one measured quantity.

        Args:
          name: what was measured, the same on every side.
          side: the implementation, for example "ours" or "transformers".
          unit: `…_per_second` where more is better; any other unit counts as a cost.
          values: one value for each repeat, at least one.
          ratio: the value divided by that of the benchmark's own reference side, if it has one.
        """
        median = statistics.median(values)
        self.rows.append(
            {"name": name, "side": side, "unit": unit, unit: median, "ratio": ratio}
            | {"low": min(values), "high": max(values), "repeats": len(values)}
            # compare.py runs two builds and must not compare one with itself.
            | {"code": str(Path(soda_jax.__file__).parent)}
        )


def parse(
    parser: argparse.ArgumentParser,
    one_round: Mapping[str, Any],
    arguments: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Parses the options of a benchmark, with `--json` and `--one_round` added.

    Args:
      parser: the benchmark's own options.
      one_round: values of its options for a short run, which `compare.py` repeats.
      arguments: command-line arguments; None uses `sys.argv[1:]`.
    """
    parser.add_argument("--json", metavar="FILE", help="also write the rows to this file")
    short = ", ".join(f"{name} {value}" for name, value in one_round.items())
    parser.add_argument("--one_round", action="store_true", help=f"a short run: {short}")
    if parser.parse_known_args(arguments)[0].one_round:
        parser.set_defaults(**one_round)
    return parser.parse_args(arguments)


@contextlib.contextmanager
def written(path: str | None) -> Iterator[Results]:
    """Yields empty `Results`, and writes their rows as a JSON list if the body succeeds."""
    if path and not Path(path).resolve().parent.is_dir():
        sys.exit(f"error: --json={path}: the folder does not exist: create it first")
    results = Results()
    yield results
    if path:
        write_atomic(Path(path), (json.dumps(results.rows, indent=1) + "\n").encode())
