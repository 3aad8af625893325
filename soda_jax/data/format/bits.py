"""Packs integers of fixed width without gaps, with fast access to any range of rows.

A row is one frame (a value per codebook) or one text id. The bits of row r, column k begin at bit
r · row_bits + offset_k, least significant bit first.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

# 8 rows fill whole bytes for any column widths, so unpacking starts at a multiple of 8 rows.
_ROWS = 8
# A value spans at most 7 + 25 bits, so one unaligned 32-bit read contains it.
MAX_WIDTH = 25
# The 32-bit read of the last value may extend this many bytes past the packed rows.
SLACK = 3


def width_of(size: int) -> int:
    """Returns the bits needed for the values 0 … size − 1: ceil(log2(size)), at least 1."""
    return max(1, (size - 1).bit_length())


@dataclasses.dataclass
class BitPacking:
    """Packs and unpacks rows of unsigned integers.

    Attributes:
      widths: number of bits of each column, 1 to 25.
    """

    widths: Sequence[int]

    def __post_init__(self) -> None:
        if not self.widths or not all(1 <= width <= MAX_WIDTH for width in self.widths):
            raise ValueError(f"widths must be in 1–{MAX_WIDTH}: {self.widths}")
        self.row_bits = sum(self.widths)
        self._offsets = np.cumsum((0, *self.widths[:-1]))
        masks = [(1 << width) - 1 for width in self.widths]
        # A scalar mask is faster than a row of equal masks.
        self._mask = np.array(masks if len(set(masks)) > 1 else masks[0], np.uint32)
        self._pattern = self._make_pattern(0)

    def size(self, rows: int) -> int:
        """Returns the size of `rows` packed rows in bytes."""
        return (rows * self.row_bits + 7) // 8

    def pack(self, values: np.ndarray) -> bytes:
        """Packs unsigned integers `[rows, columns]`, each below 2^width, into `size(rows)` bytes."""
        values = np.asarray(values).astype(np.uint32)
        bits = np.empty((len(values), self.row_bits), np.uint8)
        for column, (offset, width) in enumerate(zip(self._offsets, self.widths, strict=True)):
            shifts = np.arange(width, dtype=np.uint32)
            bits[:, offset : offset + width] = (values[:, column, None] >> shifts) & 1
        return np.packbits(bits.reshape(-1), bitorder="little").tobytes()

    def unpack(
        self, buffer: bytes, start: int, first: int, last: int, columns: int | None = None
    ) -> np.ndarray:
        """Unpacks rows [first, last) of the packed rows that start at byte `start` of `buffer`.

        At least `SLACK` bytes must follow the packed rows in `buffer`.

        Returns:
          uint32 `[last − first, columns]`: the first `columns` columns; all of them if None.
        """
        skip = first % _ROWS
        rows = last - first + skip
        # A local variable, because another thread may replace the attribute with a shorter pattern.
        pattern = self._pattern
        if rows > len(pattern[0]):
            pattern = self._pattern = self._make_pattern(2 * rows)
        offsets, shifts = pattern
        start += (first - skip) // _ROWS * self.row_bits
        words = np.ndarray((len(buffer) - start - SLACK,), "<u4", buffer, start, (1,))
        values = np.take(words, offsets[skip:rows, :columns])
        values >>= shifts[skip:rows, :columns]
        values &= self._mask if self._mask.ndim == 0 else self._mask[:columns]
        return values

    def _make_pattern(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns byte offsets and bit shifts of the values in `rows` rows, `[rows, columns]`."""
        bits = np.arange(rows)[:, None] * self.row_bits + self._offsets
        return bits >> 3, (bits & 7).astype(np.uint32)


@functools.lru_cache(maxsize=64)
def packing(sizes: tuple[int, ...]) -> BitPacking:
    """Returns the packing for rows whose column k contains values in 0 … sizes[k] − 1."""
    return BitPacking(tuple(width_of(size) for size in sizes))
