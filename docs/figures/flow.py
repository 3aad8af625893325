"""Draws docs/figures/flow.svg, the figure of the README: `python docs/figures/flow.py`."""

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 920, 368
BOX_HEIGHT = 58
COLORS = {  # fill, edge
    "input": ("#f4f4f2", "#8a8a85"),
    "offline": ("#fdf0dc", "#c98a1b"),
    "training": ("#e3edf9", "#3c78b5"),
    "use": ("#e4f3e6", "#3f9150"),
    "text": ("#e3edf9", "#3c78b5"),
    "semantic": ("#f9dfe6", "#bb4a6a"),
    "acoustic": ("#fdf0dc", "#c98a1b"),
    "marker": ("#e8e8e6", "#8a8a85"),
}
# The tokens of a short utterance: one text token per letter, and two frames of one semantic and
# three acoustic tokens.
STREAM = (
    ("‹text›", "marker"),
    *((letter, "text") for letter in "yes"),
    ("‹/text›", "marker"),
    ("‹audio›", "marker"),
    *(
        (f"{frame}.{book}", "acoustic" if book else "semantic")
        for frame in "01"
        for book in range(4)
    ),
    ("‹/audio›", "marker"),
)


def box(x: float, y: float, width: float, title: str, note: str, kind: str) -> str:
    """Returns a rounded box with a title and a smaller second line; (x, y) is its upper left corner."""
    fill, edge = COLORS[kind]
    middle = x + width / 2
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{BOX_HEIGHT}" rx="7" '
        f'fill="{fill}" stroke="{edge}" stroke-width="1.5"/>'
        + label(middle, y + 25, title, "title")
        + label(middle, y + 44, note, "note")
    )


def label(x: float, y: float, text: str, kind: str) -> str:
    """Returns text centered at x on the baseline y; `kind` is a class of the style sheet."""
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def arrow(*points: tuple[float, float]) -> str:
    """Returns a line through the points with an arrowhead at the last one."""
    path = " L".join(f"{x} {y}" for x, y in points)
    return f'<path d="M{path}" class="arrow" marker-end="url(#head)"/>'


def token(x: float, y: float, width: float, text: str, kind: str) -> str:
    """Returns one token of the stream."""
    fill, edge = COLORS[kind]
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="30" rx="4" fill="{fill}" stroke="{edge}"/>'
        + label(x + width / 2, y + 20, text, "token")
    )


def stream(y: float) -> str:
    """Returns the tokens of STREAM, centered."""
    widths = [62 if kind == "marker" else 34 for _, kind in STREAM]
    x = (WIDTH - sum(widths) - 5 * (len(widths) - 1)) / 2
    parts = []
    for (text, kind), width in zip(STREAM, widths, strict=True):
        parts.append(token(x, y, width, text, kind))
        x += width + 5
    return "".join(parts)


def flow() -> str:
    """Returns the figure as SVG."""
    parts = [
        label(98, 26, "input", "heading"),
        label(330, 26, "tokenization, offline", "heading"),
        label(576, 26, "training", "heading"),
        label(808, 26, "use", "heading"),
        box(20, 42, 156, "speech + text", "any sound file", "input"),
        box(20, 132, 156, "text", "JSONL, plain", "input"),
        box(242, 42, 176, "codec", "codes [frames, codebooks]", "offline"),
        box(242, 132, 176, "soda tokenize", "ArrayRecord shards, index", "offline"),
        box(488, 42, 176, "soda train", "windows → Flax decoder", "training"),
        box(488, 132, 176, "checkpoints", "Orbax, with digests", "training"),
        box(734, 42, 166, "soda generate", "speak, transcribe, continue", "use"),
        box(734, 132, 166, "soda evaluate", "loss per token class", "use"),
        arrow((176, 71), (238, 71)),
        arrow((176, 161), (238, 161)),
        arrow((330, 100), (330, 128)),
        arrow((418, 161), (453, 161), (453, 71), (484, 71)),
        arrow((576, 100), (576, 128)),
        arrow((664, 161), (730, 161)),
        arrow((664, 161), (699, 161), (699, 71), (730, 71)),
        label(WIDTH / 2, 232, "one stream of tokens, one decoder, one loss", "heading"),
        stream(248),
        label(
            WIDTH / 2,
            306,
            "Text first, as here, or audio first. A frame is one semantic token (codebook 0) and its acoustic tokens.",
            "note",
        ),
        label(
            WIDTH / 2,
            324,
            "SODA has eight codebooks and 12.5 frames per second: 100 tokens per second of audio.",
            "note",
        ),
    ]
    for x, kind in ((300, "text"), (390, "semantic"), (496, "acoustic"), (600, "marker")):
        fill, edge = COLORS[kind]
        parts.append(
            f'<rect x="{x}" y="341" width="12" height="12" rx="2" fill="{fill}" stroke="{edge}"/>'
            f'<text x="{x + 18}" y="351" class="key">{kind}</text>'
        )
    style = (
        "text{font-family:Helvetica,Arial,sans-serif;text-anchor:middle;fill:#222}"
        ".title{font-size:15px;font-weight:600}.note{font-size:12.5px;fill:#555}"
        ".heading{font-size:12.5px;fill:#777}.token{font-size:11.5px}"
        ".key{font-size:12.5px;text-anchor:start;fill:#555}"
        ".arrow{fill:none;stroke:#666;stroke-width:1.5}"
    )
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#666"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" '
        'aria-label="Speech and text are tokenized, trained on and used">\n'
        f"<style>{style}</style><defs>{head}</defs>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("flow.svg").write_text(flow(), encoding="utf-8")
