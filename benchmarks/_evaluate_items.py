"""The items of `evaluate.py`; standard library and numpy only, because another interpreter reads them too."""

from typing import Any

import numpy as np

# SODA's layout: text, four markers, eight codebooks of 2,048.
BOS, TEXT, AUDIO_START, AUDIO_END, TEXT_START, FIRST = (
    128_000,
    128_256,
    128_258,
    128_259,
    128_256,
    128_260,
)


def audio(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Returns the ids of random frames, int64 `[8 · frames]`."""
    return (FIRST + 2048 * np.arange(8) + rng.integers(0, 2048, (frames, 8))).reshape(-1)


def scored(count: int) -> list[np.ndarray]:
    """Returns `BOS audio_start A audio_end` of 1 to 5 s; the tokens of A are scored."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        frames = int(rng.integers(12, 63))
        found.append(np.array([BOS, AUDIO_START, *audio(rng, frames), AUDIO_END]))
    return found


def recordings() -> list[np.ndarray]:
    """Returns `BOS audio_start A audio_end text_start` of 16 recordings of 5 s."""
    rng = np.random.default_rng(1)
    return [np.array([BOS, AUDIO_START, *audio(rng, 62), AUDIO_END, TEXT_START]) for _ in range(16)]


NEW = 40


def check(layout: Any) -> None:
    """Raises ValueError unless the constants are those of a layout."""
    found = (layout.bos, layout.audio_start, layout.audio_end, layout.text_start, layout.audio_base)
    if found != (BOS, AUDIO_START, AUDIO_END, TEXT_START, FIRST):
        raise ValueError(f"the layout has {found}")
