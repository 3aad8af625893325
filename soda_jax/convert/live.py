"""The parameters of a running model, fetched from its devices a layer or some rows at a time."""

from typing import Any

import jax
import numpy as np

from soda_jax.model import DecoderConfig
from soda_jax.parallel import rules

# Rows of a table that are on a device at a time: 80 MiB for 2,560 columns of f32.
ROWS_AT_A_TIME = 8192


class LiveWeights:
    """Weights on the devices of a mesh, of one process or of several.

    Each call gathers a slice on every device and copies it to the host. Every process makes the same
    calls in the same order, and each gets the arrays.

    Attributes:
      config: the decoder's shape.
    """

    def __init__(self, params: Any, config: DecoderConfig, mesh: jax.sharding.Mesh):
        """Takes the parameters where they lie.

        Args:
          params: as `ModelFunctions` has them, sharded over `mesh`; not to be donated while this
            object is used.
          config: the decoder's shape.
          mesh: the devices.
        """
        self.config = config
        self._params = params
        # Indices are arguments, so one program serves all layers, or all rows, of an array.
        everywhere = rules.replicated(mesh)
        self._whole = jax.jit(lambda array: array, out_shardings=everywhere)
        self._layer = jax.jit(lambda stack, at: stack[at], out_shardings=everywhere)
        self._rows = jax.jit(_take, out_shardings=everywhere)

    def layer(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of layer `number`, by their names in `decoder.Layer`, in its shapes."""
        at = np.int32(number)
        return {name: _here(self._layer(a, at)) for name, a in self._params["layers"].items()}

    def rows(self, table: str, first: int, last: int) -> np.ndarray:
        """Rows of the token ids `first` … `last` − 1, `[last − first, d]`.

        Args:
          table: "embedding" or "head"; a tied model's head is its embedding.
          first, last: token ids, at most the size of the vocabulary.
        """
        name = "embedding" if self.config.tie_embeddings else table
        vocabulary = self.config.vocabulary
        block, groups = self._params[f"{name}_first"], self._params[f"{name}_groups"]
        found = np.empty((last - first, self.config.hidden_size), block.dtype)
        cut = min(max(first, vocabulary.first_rows), last)
        stored = vocabulary.row_of_id[first:last]
        self._gather(block, (stored[: cut - first],), found[: cut - first])
        if cut < last:
            at = np.divmod(stored[cut - first :] - vocabulary.padded_first, vocabulary.group_rows)
            self._gather(groups, at, found[cut - first :])
        return found

    def final_norm(self) -> np.ndarray:
        """The scale of the last norm, `[d]`."""
        return _here(self._whole(self._params["final_norm"]))

    def _gather(self, table: Any, at: tuple[np.ndarray, ...], into: np.ndarray) -> None:
        """Copies the rows `at` of a table to `into`, always the same number at a time."""
        for begin in range(0, len(into), ROWS_AT_A_TIME):
            piece = [index[begin : begin + ROWS_AT_A_TIME] for index in at]
            count = len(piece[0])
            padded = [
                np.pad(index, (0, ROWS_AT_A_TIME - count)).astype(np.int32) for index in piece
            ]
            into[begin : begin + count] = _here(self._rows(table, *padded))[:count]


def _take(table: jax.Array, *at: jax.Array) -> jax.Array:
    # Where the rows are split over devices, they are added to the zeros of the devices that lack them:
    # as integers, for −0 + 0 is 0.
    bits = jax.lax.bitcast_convert_type(table, f"uint{8 * table.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(bits[at], table.dtype)


def _here(array: jax.Array) -> np.ndarray:
    """The copy of a replicated array on the first device of this process."""
    return np.asarray(array.addressable_data(0))
