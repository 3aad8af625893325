"""The option --mesh of commands that decode."""

import argparse
from typing import Any


def add_mesh(parser: argparse.ArgumentParser, default: Any = "") -> None:
    """Adds `--mesh`."""
    parser.add_argument(
        "--mesh",
        default=default,
        metavar="AXIS=N,…",
        help="devices along the axes data and tensor, as in data=2,tensor=4; all devices are used (default: one device)",
    )


def parse_mesh(text: str | None) -> dict[str, int] | None:
    """Returns the size of each axis of `--mesh`; None for an empty text.

    Raises:
      UserError: if the text is malformed or names another axis.
    """
    from soda_jax.errors import UserError

    sizes = {}
    for entry in filter(None, (text or "").split(",")):
        name, _, number = entry.partition("=")
        if (
            name not in ("data", "tensor")
            or name in sizes
            or not number.isdecimal()
            or int(number) < 1
        ):
            raise UserError(f"--mesh={text}: write data=N,tensor=N with numbers of devices")
        sizes[name] = int(number)
    return sizes or None
