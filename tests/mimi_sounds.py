"""Audio for the tests of Mimi, and the comparison of codes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

FIXTURE = Path(__file__).parent / "codecs" / "mimi_small"
HOP = 1920
TIE = 1e-4  # f32 sums in another order do not distinguish distances with a smaller difference


def sounds(seed: int = 0, seconds: float = 3.0) -> dict[str, np.ndarray]:
    """Returns a buzz like a voice, clipped noise, and silence: float32 clips of whole frames."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * 24_000) // HOP * HOP
    time = np.arange(samples) / 24_000
    pitch = 120 + 60 * np.sin(2 * np.pi * 0.7 * time + rng.uniform(0, 6))
    loud = np.clip(np.sin(2 * np.pi * 1.9 * time + rng.uniform(0, 6)), 0, 1)
    buzz = 0.4 * loud * np.sign(np.sin(2 * np.pi * np.cumsum(pitch) / 24_000))
    made = {
        "buzz": buzz + 0.02 * rng.normal(size=samples),
        "clipped noise": np.clip(rng.normal(size=samples), -1, 1),
        "silence": np.zeros(samples),
    }
    return {name: sound.astype(np.float32) for name, sound in made.items()}


def first_differences(ours: np.ndarray, theirs: np.ndarray) -> list[tuple[int, int]]:
    """Returns (frame, codebook) of the first difference in each residual chain of `[frames, codebooks]`.

    The semantic codebook is a separate chain. Differences after the first one follow from it.
    """
    found = []
    for chain in (slice(0, 1), slice(1, None)):
        different = ours[:, chain] != theirs[:, chain]
        for frame in np.flatnonzero(different.any(1)):
            found.append((int(frame), (chain.start or 0) + int(different[frame].argmax())))
    return found


def is_tie(
    latent: np.ndarray, books: Sequence[np.ndarray], chain: Sequence[int], other: int
) -> bool:
    """Returns whether the last code of a chain and `other` are equally near to the residual, within `TIE`.

    Args:
      latent: `[dim]`, the input of the first codebook of the chain.
      books: codebooks `[size, dim]` of the chain.
      chain: the codes up to the compared one.
      other: the code of the other implementation.
    """
    left = latent.astype(np.float64)
    for book, code in zip(books, chain[:-1], strict=False):
        left = left - book[code]
    book = books[len(chain) - 1]
    distance = np.linalg.norm(left - book[[chain[-1], other]], axis=1)
    return abs(distance[0] - distance[1]) <= TIE
