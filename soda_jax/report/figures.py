"""Draws figures of a run with matplotlib, and exports them as SVG for the page or as PNG."""

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from soda_jax.codecs.mel_features import MelGrid, log_mel
from soda_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

# A placeholder color; in inline SVG it is replaced by the text color of the page.
INK = "#010203"
_TRAINING, _VALIDATION, _BIGRAM, _UNIGRAM = "#5b8fd1", "#e0782f", "#3f9a6b", "#9a86c9"
_STYLE: Any = {  # matplotlib rcParams
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.22,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "soda",
}
PANELS_A_ROW = 5
Drawing = TypeVar("Drawing", bound=Callable[..., Any])


def styled(draw: Drawing) -> Drawing:
    """Wraps `draw` to use `_STYLE` and no display; imports matplotlib only when it is called."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **options: Any) -> Any:
        import matplotlib

        matplotlib.use("Agg")
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **options)

    return wrapper  # type: ignore[return-value]


def require_matplotlib() -> None:
    """Raises UserError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("matplotlib is missing: pip install 'soda-jax[demo]'") from None


@styled
def loss_figure(
    rows: Rows,
    classes: Sequence[str],
    *,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    resumed_at: Sequence[int] = (),
) -> "Figure":
    """Returns a figure of training and held-out loss over the steps, with one panel per class.

    Args:
      rows: rows of `metrics.jsonl`.
      classes: names of the token classes; the rows have their losses as `loss/<name>`.
      baselines: held-out loss vectors of "unigram" and "bigram", drawn as horizontal lines.
      resumed_at: steps from which the run was resumed.
    """
    columns = min(PANELS_A_ROW, len(classes))
    lines = math.ceil(len(classes) / columns)
    figure, axes = subplots(lines, columns, (2.3 * columns, 1.95 * lines + 0.45))
    for axis, name in zip(axes, classes, strict=False):
        steps, values = series(rows, f"loss/{name}")
        axis.plot(steps, values, color=_TRAINING, alpha=0.3, linewidth=0.8)
        axis.plot(steps, smoothed(values), color=_TRAINING, linewidth=1.5, label="training")
        steps, values = series(rows, f"validation/loss/{name}")
        axis.plot(
            *(steps, values), "o-", color=_VALIDATION, markersize=3.5, linewidth=1, label="held-out"
        )
        for kind, color in (("bigram", _BIGRAM), ("unigram", _UNIGRAM)):
            level = ((baselines or {}).get(kind) or {}).get(f"loss/{name}")
            if level is not None:
                axis.axhline(level, color=color, linestyle="--", linewidth=1.1, label=kind)
        _mark(axis, resumed_at)
        axis.set_title(name.replace("_", " "))
        axis.set_ylim(bottom=0)
    for axis in axes[len(classes) :]:
        axis.set_visible(False)
    for row in range(lines):
        axes[row * columns].set_ylabel("nats per token")
    _finish(figure, axes[: len(classes)], columns)
    return figure


@styled
def throughput_figure(rows: Rows, *, resumed_at: Sequence[int] = ()) -> "Figure":
    """Returns a figure of tokens per second, MFU and data wait over the steps.

    Args:
      rows: rows of `metrics.jsonl`.
      resumed_at: steps from which the run was resumed.
    """
    panels = (
        ("tokens_per_second", "tokens per second", 1.0),
        ("mfu", "MFU in %", 100.0),
        ("data_wait_seconds", "data wait, ms per step", 1000.0),
    )
    figure, axes = subplots(1, len(panels), (11.5, 2.3))
    for axis, (key, title, scale) in zip(axes, panels, strict=True):
        steps, values = series(rows, key)
        axis.plot(steps, values * scale, color=_TRAINING, linewidth=1)
        axis.set_title(title)
        # Outliers such as the first step, which compiles, would flatten the curve.
        top = float(np.percentile(values, 98)) * scale * 1.25 if len(values) else 1.0
        axis.set_ylim(0, max(top, 1e-9))
        _mark(axis, resumed_at)
    _finish(figure, axes, len(panels))
    return figure


@styled
def sound_figure(audio: np.ndarray, sample_rate: int) -> "Figure":
    """Returns a figure of the waveform and the log-mel spectrogram of a clip.

    Args:
      audio: f32 mono `[samples]` in −1 … 1.
      sample_rate: in Hz.
    """
    grid = MelGrid(sample_rate=sample_rate, hop=max(1, sample_rate // 100))
    padded = np.pad(np.asarray(audio, np.float32), (0, -len(audio) % grid.hop))
    seconds = max(len(padded), 1) / sample_rate
    width = float(np.clip(2.2 + 1.6 * seconds, 3.2, 11))
    figure, (wave, mel) = subplots(2, 1, (width, 2.3), sharex=True, height_ratios=(1, 2))
    low, high = _envelope(padded, columns=round(width * 100))
    times = np.linspace(0, seconds, len(low))
    wave.fill_between(times, low, high, color=_TRAINING, linewidth=0.4)
    loudest = max(0.05, float(max(high.max(), -low.min())))
    wave.set_ylim(-loudest, loudest)
    wave.set_yticks([-loudest, 0, loudest], [f"{-loudest:.2f}", "0", f"{loudest:.2f}"])
    if len(padded):
        picture = log_mel(padded, grid).T
        extent = (0.0, seconds, 0.0, float(grid.mels))
        mel.imshow(picture, origin="lower", aspect="auto", cmap="magma", extent=extent)
    mel.grid(False)
    mel.set_yticks([0, grid.mels // 2, grid.mels])
    mel.set_ylabel("mel band")
    mel.set_xlabel("seconds")
    figure.tight_layout(pad=0.4)
    return figure


def svg(figure: "Figure", label: str) -> str:
    """Closes a figure and returns it as an inline `<svg>` element in the text color of the page.

    Args:
      figure: the figure.
      label: a description for screen readers.
    """
    import html

    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    # The salt makes the ids of clip paths different in each figure of a page.
    with plt.rc_context({**_STYLE, "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    start, rest = text.split(">", 1)
    named = f'{start} role="img" aria-label="{html.escape(label)}">'
    body = rest.partition("</metadata>")[2] or rest
    # Group ids are the same in every figure and nothing refers to them, so they are removed.
    return named + re.sub(r'<g id="[^"]*"', "<g", body)


def svg_document(figure: "Figure", label: str) -> str:
    """Closes a figure and returns it as an SVG file with a white background, for documents.

    Args:
      figure: the figure.
      label: the title of the file; equal figures with equal labels give equal files.
    """
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    with plt.rc_context({**_STYLE, "svg.hashsalt": label}):
        metadata = {"Date": None, "Creator": None, "Title": label}
        figure.savefig(buffer, format="svg", facecolor="white", metadata=metadata)
    plt.close(figure)
    return re.sub(r" +$", "", buffer.getvalue(), flags=re.MULTILINE)


def png(figure: "Figure", dots_per_inch: int = 150) -> bytes:
    """Closes a figure and returns it as PNG with a white background, for documents."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor="white")
    plt.close(figure)
    return buffer.getvalue()


def subplots(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> "tuple[Figure, list[Axes]]":
    """Returns a figure of `size` inches and its axes, row by row."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    return figure, list(axes.flat)


def series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and values of one metric, without rows that lack it."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, np.int64), np.array(values, np.float64)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Returns the centered moving average of the finite values, with a window of 1/30 of all; NaN without any."""
    reach = len(values) // 60
    if not reach:
        return values
    finite = np.isfinite(values)
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(finite, values, 0.0), finite)
    )
    index = np.arange(len(values))
    first, last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    number = counts[last] - counts[first]
    return np.where(number > 0, (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)


def _envelope(audio: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest and the highest sample of each of about `columns` consecutive parts."""
    if not len(audio):
        return np.zeros(1), np.zeros(1)
    starts = np.unique(np.linspace(0, len(audio), columns, endpoint=False).astype(np.int64))
    return np.minimum.reduceat(audio, starts), np.maximum.reduceat(audio, starts)


def _mark(axis: "Axes", resumed_at: Sequence[int]) -> None:
    for number, step in enumerate(resumed_at):
        label = "resumed" if number == 0 else None
        axis.axvline(step, color="#888888", linestyle=":", linewidth=1.2, label=label)


def _finish(figure: "Figure", axes: "Sequence[Axes]", columns: int) -> None:
    """Labels the bottom axes and adds one legend for all panels."""
    for axis in axes[-columns:]:
        axis.set_xlabel("step")
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.tight_layout(pad=0.5)
    if handles:
        bottom = 0.34 / figure.get_figheight()
        figure.tight_layout(pad=0.5, rect=(0, bottom, 1, 1))
        figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles))
