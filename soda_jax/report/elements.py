"""Renders the parts that all pages share: the template, sections, numbers, samples with players."""

import base64
import html
import io
import string
import wave
from collections.abc import Collection, Iterable, Sequence
from importlib import resources
from typing import Any

import numpy as np

from soda_jax.report import figures
from soda_jax.report.content import Clip, Sample
from soda_jax.report.run_figures import color_of

_SHORT = 16


def page(title: str, intro: str, sections: str) -> str:
    """Returns a page as HTML.

    Args:
      title: heading, as plain text.
      intro: a paragraph after the heading, as plain text; may be empty.
      sections: HTML of the sections.

    Raises:
      UserError: if matplotlib is not installed.
    """
    figures.require_matplotlib()
    template = resources.files("soda_jax.report").joinpath("page.html").read_text("utf-8")
    return string.Template(template).substitute(
        title=html.escape(title),
        intro=f'<p class="soft">{html.escape(intro)}</p>' if intro else "",
        sections=sections,
    )


def section(title: str, body: str) -> str:
    """Returns a section with a heading; `title` is plain text, `body` HTML."""
    return f"<section><h2>{escaped(title)}</h2>{body}</section>\n"


def escaped(value: Any) -> str:
    """Returns a value as escaped text; an int has thousands separators."""
    return html.escape(f"{value:,}" if isinstance(value, int) else str(value))


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    texts: Collection[int] = (),
    published: int = 0,
) -> str:
    """Returns a table in a card.

    Args:
      head: HTML of the headings.
      rows: HTML of the cells of each row.
      texts: indices of the columns whose text wraps and is aligned to the left; column 0 is aligned to the left too.
      published: number of rows, from the first one, with published numbers, which are marked.
    """

    def row(tag: str, cells: Sequence[str], kind: str = "") -> str:
        shown = (
            f'<{tag} class="text">{cell}</{tag}>' if number in texts else f"<{tag}>{cell}</{tag}>"
            for number, cell in enumerate(cells)
        )
        return f"<tr{kind}>{''.join(shown)}</tr>"

    body = "".join(
        row("td", cells, ' class="published"' if number < published else "")
        for number, cells in enumerate(rows)
    )
    return f'<div class="card"><table class="runs">{row("th", head)}{body}</table></div>'


def run_name(number: int, label: str) -> str:
    """Returns the label of run `number` with a dot in the color of its curves, as HTML."""
    dot = f'<span class="dot" style="background:{color_of(number)}"></span>'
    # A short label stays on the line of its dot.
    kind = ' class="name"' if len(label) <= _SHORT else ""
    return f"<span{kind}>{dot}{escaped(label)}</span>"


def nats(value: float | None, signed: bool = False) -> str:
    """Returns a loss in nats as text; None is “–”."""
    return "–" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def sample_card(sample: Sample, number: int) -> str:
    """Returns a sample with spectrograms and players; `number` is unique on the page."""
    named = (
        ("input text", sample.prompt_text),
        ("reference", sample.reference),
        ("transcript" if sample.kind == "transcribe" else "recognized as", sample.result),
        ("note", sample.note),
    )
    lines = "".join(f"<dt>{name}</dt><dd>{escaped(text)}</dd>" for name, text in named if text)
    clips = "".join(
        _clip(clip, sample.sample_rate, f"sample {number}.{index}")
        for index, clip in enumerate(sample.clips, 1)
    )
    return (
        f'<div class="card"><h3>{escaped(sample.title)}</h3><dl>{lines}</dl>'
        f'<div class="figures">{clips}</div></div>'
    )


def _clip(clip: Clip, sample_rate: int, name: str) -> str:
    label = f"{clip.caption}: waveform and spectrogram ({name})"
    picture = figures.svg(figures.sound_figure(clip.audio, sample_rate), label)
    seconds = len(clip.audio) / sample_rate
    player = f'<audio controls preload="metadata" src="{wav_uri(clip.audio, sample_rate)}"></audio>'
    caption = f"{escaped(clip.caption)}, {seconds:.2f} s"
    return f"<figure><figcaption>{caption}</figcaption>{picture}{player}</figure>"


def wav_uri(audio: np.ndarray, sample_rate: int) -> str:
    """Returns a clip as a `data:` URI of a 16-bit WAV file."""
    scaled = np.round(np.clip(np.asarray(audio, np.float64), -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(scaled.tobytes())
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
