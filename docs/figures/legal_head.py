"""Draws docs/figures/legal_head.svg, the figure of docs/legal-head.md: `python docs/figures/legal_head.py`."""

import math
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from soda_jax.tokens.documents import Utterance, View, render
from soda_jax.tokens.partition import partition
from soda_jax.tokens.vocabulary import VocabularyLayout

WIDTH, HEIGHT, LEFT, TOP, BASE = 920, 300, 66, 34, 214
COLORS = {"text": "#3c78b5", "audio": "#c98a1b", "marker": "#8a8a85"}
NAMES = {
    "text": "text and a marker",
    "audio": "one codebook, and audio_end at a frame boundary",
    "marker": "markers only",
}


def stream(layout: VocabularyLayout) -> tuple[list[str], list[int], list[str]]:
    """Returns the tokens of a short utterance by name, and size and kind of the legal set of each."""
    text = np.arange(3)
    codes = np.zeros((2, layout.codebooks), np.uint16)
    ids = render([Utterance("", text, codes)], View("text_first"), layout)
    found = partition(layout)
    states = [found.rules.start, *found.states(ids, found.rules.start)[:-1].tolist()]
    sets = [found.legal_ids(int(found.set_of_state[state])) for state in states]
    special = {
        layout.bos: "BOS",
        layout.eos: "EOS",
        layout.text_start: "‹text›",
        layout.text_end: "‹/text›",
        layout.audio_start: "‹audio›",
        layout.audio_end: "‹/audio›",
    }
    names, kinds = [], []
    for token, legal in zip(ids.tolist(), sets, strict=True):
        book = (token - layout.audio_base) // layout.codebook_sizes[0]
        names.append(special.get(token, "text" if token < layout.text_size else f"codebook {book}"))
        has_text = bool(layout.ordinary_text[legal].any())
        kinds.append(
            "text" if has_text else "audio" if legal[-1] >= layout.audio_base else "marker"
        )
    return names, [len(legal) for legal in sets], kinds


def height(size: int) -> float:
    """Returns the height of a bar, logarithmic."""
    return 10 + 150 * math.log(size) / math.log(144_644)


def figure() -> str:
    """Returns the SVG."""
    layout = VocabularyLayout.soda()
    names, sizes, kinds = stream(layout)
    step = (WIDTH - LEFT - 16) / len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for size in (1, 2048, 128_001, layout.size):
        y = BASE - height(size)
        dash = "" if size == layout.size else ' stroke-dasharray="2 4"'
        color = "#bb4a6a" if size == layout.size else "#c8c8c4"
        above = 4 if size != layout.size else -5
        parts.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - 16}" y2="{y:.1f}" stroke="{color}"{dash}/>'
            f'<text x="{LEFT - 6}" y="{y + (4 if size == 2048 or size == 1 else 4 + above):.1f}" '
            f'text-anchor="end" fill="#333">{size:,}</text>'
        )
    parts.append(
        f'<text x="{LEFT}" y="{TOP - 14}" fill="#bb4a6a">head = full: all {layout.size:,} ids at every '
        "position (red line); heights are logarithmic</text>"
    )
    for number, (name, size, kind) in enumerate(zip(names, sizes, kinds, strict=True)):
        x, top = LEFT + number * step, BASE - height(size)
        middle = x + step / 2
        parts.append(
            f'<rect x="{x + 3:.1f}" y="{top:.1f}" width="{step - 6:.1f}" height="{height(size):.1f}" '
            f'rx="2" fill="{COLORS[kind]}"/>'
            f'<text x="{middle + 4:.1f}" y="{BASE + 10}" fill="#333" text-anchor="end" '
            f'transform="rotate(-45 {middle + 4:.1f} {BASE + 10})">{escape(name)}</text>'
        )
    x = LEFT
    for kind, text in NAMES.items():
        parts.append(
            f'<rect x="{x}" y="{HEIGHT - 20}" width="11" height="11" rx="2" fill="{COLORS[kind]}"/>'
            f'<text x="{x + 17}" y="{HEIGHT - 10}" fill="#333">{escape(text)}</text>'
        )
        x += 60 + 6.4 * len(text)
    parts.append("</svg>\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(figure(), encoding="utf-8")
