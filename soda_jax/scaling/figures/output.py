"""Writes figures as SVG and PNG into a folder."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from soda_jax.errors import UserError
from soda_jax.files import write_atomic
from soda_jax.report.figures import png, svg_document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """A figure with its name.

    Attributes:
      name: name of the files, without suffix.
      title: heading.
      caption: what is shown, as plain text.
      figure: the figure.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"


def check_formats(names: Sequence[str]) -> None:
    """Raises UserError if a format is not one of `FORMATS`, or there is none."""
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise UserError(f"--formats={','.join(names)} must be svg, png or both")


def write_figures(
    out: str, drawn: Sequence[Drawn], formats: Collection[str] = FORMATS, more: Sequence[str] = ()
) -> list[str]:
    """Writes the figures, after all of them are rendered, and returns the names of the files.

    Args:
      out: the folder, which is created if needed.
      drawn: the figures.
      formats: "svg" and "png".
      more: names of figures that are not drawn, whose files of an earlier call are removed.
    """
    files: dict[str, str | bytes] = {}
    for one in drawn:
        if "svg" in formats:
            files[f"{one.name}.svg"] = svg_document(one.figure, one.title)
        if "png" in formats:
            files[f"{one.name}.png"] = png(one.figure)
    for name, content in files.items():
        write_atomic(Path(out) / name, content)
    for name in more:
        for suffix in FORMATS:
            (Path(out) / f"{name}.{suffix}").unlink(missing_ok=True)
    return list(files)
