"""Reads the parameters of a decoder in slices, and writes them as checkpoints."""

import abc
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from soda_jax.checkpoints.slices import Index, Shape, SliceReader, Write, new_step
from soda_jax.checkpoints.tree import flatten
from soda_jax.convert.safetensors_folder import checksum
from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig, ModelFunctions
from soda_jax.progress import Progress

# Rows of a table in memory at a time: 84 MB of f32 for hidden_size 2,560.
ROWS = 8192
TABLES = ("embedding", "head")


class Weights(abc.ABC):
    """Interface for reading the f32 parameters of a decoder.

    The subclasses read them from checkpoints, from safetensors or from devices.

    Attributes:
      config: decoder config.
    """

    config: DecoderConfig

    @abc.abstractmethod
    def read(self, name: str, first: int, last: int) -> np.ndarray:
        """Returns the rows `first … last − 1` of the leading axis of a parameter.

        Args:
          name: "embedding" or "head", `[vocabulary, hidden_size]`, with one row per token id and no
            padding (for a tied model, "head" returns the embedding); "final_norm",
            `[hidden_size]`; or a parameter of `Layer`, such as "layers/query", whose leading axis
            is the layer.
          first, last: range of rows; `last` is excluded.
        """

    def layer(self, number: int) -> dict[str, np.ndarray]:
        """Returns the parameters of one layer; names and shapes are those of `decoder.Layer`."""
        names = layer_shapes(self.config)
        return {name: self.read(f"layers/{name}", number, number + 1)[0] for name in names}


def tables(config: DecoderConfig) -> tuple[str, ...]:
    """Returns the names of the tables that are stored; a tied model has only the embedding."""
    return TABLES[:1] if config.tie_embeddings else TABLES


def row_blocks(size: int) -> Iterator[tuple[int, int]]:
    """Yields `(first, last)` of consecutive blocks of at most `ROWS` rows, up to row `size`."""
    for first in range(0, size, ROWS):
        yield first, min(first + ROWS, size)


@functools.cache
def shapes(config: DecoderConfig) -> dict[str, Shape]:
    """Returns the stored shape of every parameter, by names such as `layers/query`."""
    leaves = flatten(ModelFunctions(config).abstract)
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


def layer_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """Returns the shape of every parameter of one layer, by names such as `query`."""
    return {
        name.removeprefix("layers/"): shape[1:]
        for name, shape in shapes(config).items()
        if name.startswith("layers/")
    }


class StoredWeights(Weights):
    """Reads the parameters of a checkpoint."""

    def __init__(self, reader: SliceReader, config: DecoderConfig):
        """Opens a checkpoint; raises UserError if its shapes differ from those of `config`."""
        self.config, self._reader = config, reader
        wanted, found = shapes(config), reader.shapes
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise UserError(
                    f"the checkpoint has {name} of shape {found.get(name)}, but its config gives "
                    f"{wanted.get(name)}; restore the checkpoint or its config"
                )

    def read(self, name: str, first: int, last: int) -> np.ndarray:
        """See `Weights`."""
        if name not in TABLES:
            return self._reader.read(name, (slice(first, last),))
        parts = []
        for block in _blocks(self.config, "embedding" if self.config.tie_embeddings else name):
            begin, end = max(first, block.first), min(last, block.last)
            if begin < end:
                rows = slice(begin - block.first, end - block.first)
                parts.append(self._reader.read(block.array, (*block.at, rows)))
        return np.concatenate(parts) if len(parts) != 1 else parts[0]


class _Block(NamedTuple):
    """Consecutive ids of a table that are stored in consecutive rows of an array."""

    array: str
    at: tuple[int, ...]  # leading indices of the rows in the array
    first: int  # first id
    last: int  # last id + 1
    rows: int  # number of rows, padding included


def _blocks(config: DecoderConfig, table: str) -> Iterator[_Block]:
    vocabulary = config.vocabulary
    last = vocabulary.first_rows
    yield _Block(f"{table}_first", (), 0, last, vocabulary.padded_first)
    for group, size in enumerate(vocabulary.groups):
        last += size
        yield _Block(f"{table}_groups", (group,), last - size, last, vocabulary.group_rows)


def _write_slices(weights: Weights, write: Write, bar: Progress | None = None) -> dict[str, str]:
    """Writes all parameters, with zeros in padding rows; returns the `checksums`."""
    sums: dict[str, str] = {}

    def read(name: str, first: int, last: int) -> np.ndarray:
        values = weights.read(name, first, last)
        sums[f"{name}/{first}"] = checksum(values)
        if bar is not None:
            bar.advance(values.nbytes / 1e6)
        return values

    for table in tables(weights.config):
        for block in _blocks(weights.config, table):
            for start, end in row_blocks(block.last - block.first):
                values = read(table, block.first + start, block.first + end)
                # The last slice of a block includes its padding, so every chunk is written once.
                stop = block.rows if block.first + end == block.last else end
                padded = np.pad(values, ((0, stop - end), (0, 0))) if stop > end else values
                write(block.array, (*block.at, slice(start, stop)), padded)
    for name, shape in shapes(weights.config).items():
        if name.startswith("layers/"):
            for number in range(shape[0]):
                write(name, (slice(number, number + 1),), read(name, number, number + 1))
    width = weights.config.hidden_size
    write("final_norm", (slice(0, width),), read("final_norm", 0, width))
    return sums


def checksums(weights: Weights, bar: Progress) -> dict[str, str]:
    """Returns the crc32c of every slice that `write_checkpoint` writes, by `NAME/FIRST_ROW`."""
    return _write_slices(weights, lambda *_: None, bar)


def whole(weights: Weights) -> dict[str, Any]:
    """Returns all parameters as the dict that `ModelFunctions` expects, f32; padding is zero."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes(weights.config).items()}

    def write(name: str, index: tuple[Index, ...], values: np.ndarray) -> None:
        arrays[name][index] = values

    _write_slices(weights, write)
    found: dict[str, Any] = {"layers": {}}
    for name, array in arrays.items():
        layers, _, inner = name.rpartition("/")
        (found[layers] if layers else found)[inner] = array
    return found


def write_checkpoint(
    weights: Weights,
    directory: str | os.PathLike[str],
    step: int,
    metadata: Mapping[str, Any],
    bar: Progress,
) -> dict[str, str]:
    """Writes a checkpoint without training state, one slice at a time.

    Args:
      weights: the parameters; each slice is read once.
      directory: folder of the checkpoints.
      step: step number of the checkpoint.
      metadata: JSON object to store in the checkpoint.
      bar: progress bar in megabytes.

    Returns:
      the `checksums` of the slices that were written.
    """
    # One chunk per slice that is written and read: a layer or a block of rows.
    arrays: dict[str, tuple[Shape, Shape]] = {}
    for name, shape in shapes(weights.config).items():
        rows = 1 if name.endswith("_groups") else 0  # index of the axis of rows
        chunk = [max(1, size) for size in shape]
        if name.startswith("layers/"):
            chunk[0] = 1
        else:
            chunk[:rows] = [1] * rows
            chunk[rows] = min(ROWS, chunk[rows])
        arrays[name] = shape, tuple(chunk)
    with new_step(directory, step, arrays, metadata) as write:
        return _write_slices(weights, write, bar)
