"""Axes, markers and lines that all figures of scaling studies share.

Budgets, classes and methods differ in marker or line style as well as in color, so that a figure is
readable in grayscale.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from soda_jax.scaling.summary import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Readable on a light and on a dark page.
RAMP = ("#4f74d9", "#2f9a94", "#cf8a1f", "#cf4f78")  # from small to large budgets
PALETTE = ("#4f74d9", "#d9722e", "#2f9a6b", "#9a7fd1", "#cf4f78", "#a58b2c", "#2f9aae", "#96745c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (3, 2, 1, 2)))
GRAY = "#808080"
SURFACE, LOG_SUM_EXP, PARABOLA = PALETTE[0], PALETTE[2], PALETTE[1]


def budget_text(budget: float) -> str:
    """Returns a budget in FLOPs with up to two decimals, such as 3e18 or 3.16e11."""
    mantissa, exponent = f"{budget:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def ordered_style(index: int, total: int) -> dict[str, Any]:
    """Returns color and marker of item `index` of an ascending list, as options of `plot`.

    After the last marker they repeat without filling.
    """
    color = ramp(index / max(total - 1, 1))
    filled = index // len(MARKERS) % 2 == 0
    return {
        "color": color,
        "marker": MARKERS[index % len(MARKERS)],
        "markerfacecolor": color if filled else "none",
    }


def ramp(where: float) -> tuple[float, float, float]:
    """Returns the color at 0 to 1 of the ramp from small to large, as RGB."""
    from matplotlib.colors import to_rgb

    stops = np.array([to_rgb(color) for color in RAMP])
    points = np.linspace(0, 1, len(RAMP))
    red, green, blue = (float(np.interp(where, points, channel)) for channel in stops.T)
    return red, green, blue


def class_style(index: int) -> dict[str, Any]:
    """Returns color, marker and line style of class `index`, as options of `plot`."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[(index + index // len(PALETTE)) % len(LINES)],
    }


def log_counts(axis: "Axes", which: str, label: str, most: int = 7) -> None:
    """Makes an axis logarithmic with counts such as 100M as ticks.

    Args:
      axis: the axes.
      which: "x" or "y".
      label: label of the axis.
      most: largest number of ticks.
    """
    _log(axis, which, label, lambda value, _: count(value), most)


def log_budgets(axis: "Axes", which: str, label: str = "training FLOPs, C") -> None:
    """Makes an axis logarithmic with FLOPs such as 3e18 as ticks."""
    _log(axis, which, label, lambda value, _: budget_text(value))


def log_factors(axis: "Axes", which: str, label: str) -> None:
    """Makes an axis logarithmic with plain numbers as ticks."""
    _log(axis, which, label, lambda value, _: f"{value:g}")


def _log(axis: "Axes", which: str, label: str, form: Any, most: int = 7) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    getattr(axis, f"set_{which}scale")("log")
    getattr(axis, f"set_{which}label")(label)
    low, high = getattr(axis, f"get_{which}lim")()
    line = axis.xaxis if which == "x" else axis.yaxis
    line.set_major_locator(FixedLocator(log_ticks(low, high, most)))
    line.set_major_formatter(FuncFormatter(form))
    line.set_minor_locator(NullLocator())
    getattr(axis, f"set_{which}lim")(low, high)


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Returns round numbers from `low` to `high`, at least two where possible and at most `most`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for digits, every in (
        ((1,), 5), ((1,), 4), ((1,), 3), ((1,), 2), ((1,), 1), ((1, 3), 1), ((1, 2, 5), 1),
        ((1, 1.5, 2, 3, 5, 7), 1), (tuple(np.arange(10, 100, 2) / 10), 1),
    ):  # fmt: skip
        ticks = [
            float(f"{digit}e{decade}")
            for decade in decades
            if decade % every == 0
            for digit in digits
        ]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) > most:
            break
        found = ticks
    return found


def spread(values: np.ndarray, margin: float = 1.15) -> tuple[float, float]:
    """Returns the range of finite values above 0, wider by a factor on each side."""
    known = values[np.isfinite(values) & (values > 0)]
    return float(known.min()) / margin, float(known.max()) * margin
