"""Maps index k of the training stream to a window of a source.

Grain's MapDataset permutes each source (differently in each epoch), repeats it and mixes the sources by
weight. The result is a function of the index, so there is no state to save.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from soda_jax.errors import UserError


def normalized_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the weights by source name, sorted by name, with a sum of 1.

    Raises:
      UserError: if there is no source.
    """
    if not weights:
        raise UserError("data.sources is empty; add a source to the config")
    total = math.fsum(weights.values())
    return {name: weights[name] / total for name in sorted(weights)}


class Mixture:
    """An endless stream of pairs (source, window) with random access; thread-safe."""

    def __init__(
        self, names: Sequence[str], windows: Sequence[int], weights: Sequence[float], seed: int
    ):
        """Sets up the permutation of each source.

        Args:
          names: names of the sources. The permutation of a source depends only on its name, its
            number of windows and the seed.
          windows: number of windows of each source.
          weights: weight of each source; Grain rounds them down to multiples of 1% of the
            smallest weight.
          seed: seed of the stream.

        Raises:
          UserError: if a source has more windows than the permutation supports (2^32 − 1).
        """  # fmt: skip
        import grain

        sources = []
        for number, (name, count) in enumerate(zip(names, windows, strict=True)):
            if count >= 1 << 32:
                raise UserError(f"source {name} has {count} windows, more than 2^32 - 1; split it")
            source_seed = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4]
            windows_of = grain.MapDataset.range(count).shuffle(
                int.from_bytes(source_seed, "little")
            )
            sources.append(windows_of.repeat().map(_tagged(number)))
        self._stream = grain.MapDataset.mix(sources, list(weights))

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self._stream[index]


class InOrder:
    """All windows once, source by source, in stored order; None after the last window."""

    def __init__(self, windows: Sequence[int]):
        """Stores `windows`, the number of windows of each source."""
        self._windows = list(windows)

    def __getitem__(self, index: int) -> tuple[int, int] | None:
        for source, count in enumerate(self._windows):
            if index < count:
                return source, index
            index -= count
        return None


def _tagged(source: int) -> Any:
    return lambda window: (source, window)
