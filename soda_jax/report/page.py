"""The page itself: sections into the template, everything inside one file."""

import html
import string
from importlib import resources
from os import PathLike

from soda_jax.errors import UserError
from soda_jax.files import write_atomic
from soda_jax.report import sections
from soda_jax.report.content import ReportContent


def write_report(path: str | PathLike[str], content: ReportContent) -> None:
    """Writes a report as one HTML file that needs no network: figures and sounds are inside.

    Raises:
      UserError: if matplotlib is not installed.
    """
    write_atomic(path, render(content))


def render(content: ReportContent) -> str:
    """The HTML of a report."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("matplotlib is missing: pip install 'soda-jax[demo]'") from None
    template = resources.files("soda_jax.report").joinpath("page.html").read_text("utf-8")
    parts = (
        sections.samples,
        sections.word_errors,
        sections.held_out,
        sections.curves,
        sections.facts,
        sections.stages,
        sections.commands,
    )
    return string.Template(template).substitute(
        title=html.escape(content.title),
        intro=f'<p class="soft">{html.escape(content.intro)}</p>' if content.intro else "",
        sections="".join(part(content) for part in parts),
    )
