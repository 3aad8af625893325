"""The parameters of a decoder as they are converted and compared: a slice at a time."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from soda_jax.checkpoints.slices import SliceReader
from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig, ModelFunctions

# Rows of a table that are in memory at a time: 84 MB in f32 at a width of 2,560.
ROWS = 8192
TABLES = ("embedding", "head")


class Weights(Protocol):
    """Parameters that are somewhere: in a checkpoint, in safetensors, on devices.

    Attributes:
      config: the decoder's shape.
    """

    config: DecoderConfig

    def layer(self, number: int) -> dict[str, np.ndarray]:
        """One layer: names and shapes of `model.decoder.Layer`."""
        ...

    def rows(self, table: str, first: int, last: int) -> np.ndarray:
        """Rows `[last − first, d]` of the ids `first … last − 1` of "embedding" or "head"."""
        ...

    def final_norm(self) -> np.ndarray:
        """Scale of the last norm, `[d]`."""
        ...


def tables(config: DecoderConfig) -> tuple[str, ...]:
    """The tables that a decoder has parameters for: a tied one has no head of its own."""
    return TABLES[:1] if config.tie_embeddings else TABLES


def row_blocks(size: int, rows: int = ROWS) -> Iterator[tuple[int, int]]:
    """`(first, last)` of blocks of at most `rows` of `size` rows."""
    for first in range(0, size, rows):
        yield first, min(first + rows, size)


def shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of a decoder, by its name `layers/query`."""
    found: dict[str, tuple[int, ...]] = {}
    for name, leaf in ModelFunctions(config).abstract.items():
        if isinstance(leaf, dict):
            found |= {f"{name}/{inner}": tuple(array.shape) for inner, array in leaf.items()}
        else:
            found[name] = tuple(leaf.shape)
    return found


def layer_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of one layer, by its name in the layer."""
    return {
        name.removeprefix("layers/"): shape[1:]
        for name, shape in shapes(config).items()
        if name.startswith("layers/")
    }


class StoredWeights:
    """The parameters of a checkpoint."""

    def __init__(self, reader: SliceReader, config: DecoderConfig):
        """Raises: UserError if the checkpoint does not hold the parameters of `config`."""
        self.config, self._reader = config, reader
        wanted, found = shapes(config), reader.shapes
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise UserError(
                    f"the checkpoint has {name} of shape {found.get(name)}, its config makes it "
                    f"{wanted.get(name)}; restore the checkpoint or its config"
                )
        self._layer_names = list(layer_shapes(config))

    def layer(self, number: int) -> dict[str, np.ndarray]:
        """See `Weights`."""
        return {name: self._reader.read(f"layers/{name}", number) for name in self._layer_names}

    def rows(self, table: str, first: int, last: int) -> np.ndarray:
        """See `Weights`."""
        table = "embedding" if self.config.tie_embeddings else table
        parts = []
        for block, index in stored_rows(self.config, first, last):
            parts.append(self._reader.read(f"{table}_{block}", index))
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def final_norm(self) -> np.ndarray:
        """See `Weights`."""
        return self._reader.read("final_norm")


def stored_rows(
    config: DecoderConfig, first: int, last: int
) -> Iterator[tuple[str, tuple[int | slice, ...]]]:
    """Where the ids `first … last − 1` stand in the two blocks of a table, in their order.

    Yields:
      "first" or "groups", and the index of some of the rows in that block.
    """
    vocabulary = config.vocabulary
    if first < vocabulary.first_rows:
        yield "first", (slice(first, min(last, vocabulary.first_rows)),)
    start = vocabulary.first_rows
    for group, size in enumerate(vocabulary.groups):
        begin, end = max(first, start), min(last, start + size)
        if begin < end:
            yield "groups", (group, slice(begin - start, end - start))
        start += size


def whole(weights: Weights) -> dict[str, Any]:
    """The parameter dict of `ModelFunctions`, f32, in memory; rows of no id are zero."""
    config = weights.config
    vocabulary, width = config.vocabulary, config.hidden_size
    layers = [weights.layer(number) for number in range(config.num_layers)]
    found: dict[str, Any] = {
        "layers": {name: np.stack([layer[name] for layer in layers]) for name in layers[0]},
        "final_norm": weights.final_norm(),
    }
    for table in tables(config):
        rows = np.zeros((vocabulary.rows, width), np.float32)
        for first, last in row_blocks(vocabulary.size):
            rows[vocabulary.row_of_id[first:last]] = weights.rows(table, first, last)
        first_block, groups = np.split(rows, [vocabulary.padded_first])
        found[f"{table}_first"] = first_block
        found[f"{table}_groups"] = groups.reshape(
            len(vocabulary.groups), vocabulary.group_rows, width
        )
    return found
