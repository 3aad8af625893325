"""Which window of which source stands at place k of the training stream.

Grain's MapDataset does the work: each source is permuted (anew in each epoch), repeated without end,
and mixed by weight. Everything is a function of the place; there is no state to save.
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
    """Places of an endless stream to (source, window); random access, safe for threads."""

    def __init__(
        self, names: Sequence[str], windows: Sequence[int], weights: Sequence[float], seed: int
    ):
        """Sets up the permutation of each source.

        Args:
          names: of the sources; a source's permutation depends on its name and the seed alone.
          windows: of each source.
          weights: of each source; grain rounds them to hundredths of the smallest.
          seed: of the whole stream.

        Raises:
          UserError: if a source has more windows than the permutation can number (2^32 − 1).
        """  # fmt: skip
        import grain

        sources = []
        for number, (name, count) in enumerate(zip(names, windows, strict=True)):
            if count >= 1 << 32:
                raise UserError(f"source {name} has {count} windows, the limit is 2^32 - 1")
            source_seed = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4]
            places = grain.MapDataset.range(count).shuffle(int.from_bytes(source_seed, "little"))
            sources.append(places.repeat().map(_tagged(number)))
        self._stream = grain.MapDataset.mix(sources, list(weights))

    def __getitem__(self, place: int) -> tuple[int, int]:
        return self._stream[place]


class InOrder:
    """All windows of all sources once, source by source, unshuffled; None behind the last."""

    def __init__(self, windows: Sequence[int]):
        """Args: windows: of each source."""
        self._windows = list(windows)

    def __getitem__(self, place: int) -> tuple[int, int] | None:
        for source, count in enumerate(self._windows):
            if place < count:
                return source, place
            place -= count
        return None


def _tagged(source: int) -> Any:
    return lambda window: (source, window)
