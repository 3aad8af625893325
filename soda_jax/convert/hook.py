"""Defines a training hook that exports the parameters as Hugging Face folders."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from soda_jax.convert.safetensors_folder import DTYPES
from soda_jax.convert.weights import ROWS, TABLES, Weights
from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig
from soda_jax.parallel import hosts, rules

FOLDER = "exports"  # in the workdir
# Barrier timeout: the other processes wait while process 0 writes and verifies.
_SECONDS = 4 * 3600.0


class LiveWeights(Weights):
    """Reads parameters that are sharded over the mesh of one or more processes.

    A read replicates a slice on all devices and copies it to the host. All processes must make the
    same reads in the same order, and all of them receive the values.
    """

    def __init__(self, params: Any, config: DecoderConfig, mesh: jax.sharding.Mesh):
        """Prepares the jitted gathers, which are compiled by the first reads.

        Args:
          params: parameters of `ModelFunctions`, sharded over `mesh`; they must not be donated
            while they are read.
          config: decoder config.
          mesh: the mesh of the run.
        """
        self.config, self._params = config, params
        # Indices are traced arguments, so each array needs only one compiled program.
        replicated = rules.replicated(mesh)
        self._layer = jax.jit(lambda stack, at: stack[at], out_shardings=replicated)
        self._rows = jax.jit(_take_rows, out_shardings=replicated)

    def read(self, name: str, first: int, last: int) -> np.ndarray:
        """See `Weights`."""
        if name.startswith("layers/"):
            stack = self._params["layers"][name.removeprefix("layers/")]
            layers = [_local(self._layer(stack, np.int32(at))) for at in range(first, last)]
            return layers[0][None] if len(layers) == 1 else np.stack(layers)
        if name not in TABLES:
            return self._gather(self._params[name], np.arange(first, last))
        name = "embedding" if self.config.tie_embeddings else name
        vocabulary = self.config.vocabulary
        rows = vocabulary.row_of_id[first:last]
        in_groups = rows >= vocabulary.padded_first
        index = np.divmod(rows[in_groups] - vocabulary.padded_first, vocabulary.group_rows or 1)
        text = self._gather(self._params[f"{name}_first"], rows[~in_groups])
        return np.concatenate([text, self._gather(self._params[f"{name}_groups"], *index)])

    def _gather(self, table: Any, *index: np.ndarray) -> np.ndarray:
        """Returns `table[index]`, gathered `ROWS` rows at a time to compile only one program."""
        count = len(index[0])
        found = np.empty((count, *table.shape[len(index) :]), table.dtype)
        for start in range(0, count, ROWS):
            piece = [axis[start : start + ROWS] for axis in index]
            size = len(piece[0])
            padded = [np.pad(axis, (0, ROWS - size)).astype(np.int32) for axis in piece]
            found[start : start + size] = _local(self._rows(table, *padded))[:size]
        return found


def _take_rows(table: jax.Array, *index: jax.Array) -> jax.Array:
    # If the table is sharded, XLA sums the row of one device and zeros of the other devices. The
    # sum is over integers, because in floats −0.0 + 0.0 is +0.0.
    bits = jax.lax.bitcast_convert_type(table, f"uint{8 * table.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(bits[index], table.dtype)


def _local(array: jax.Array) -> np.ndarray:
    """Returns the copy of a replicated array on the first device of this process."""
    return np.asarray(array.addressable_data(0))


class ExportHook:
    """Writes `WORKDIR/exports/step-N` after every `every` steps and after the last step.

    All processes fetch the parameters; process 0 writes. The folder appears once it is verified. An
    existing folder, for example after resuming from an earlier step, is not changed.
    """

    def __init__(self, every: int, dtype: str, export: Callable[..., Any] | None = None):
        """Sets the interval and the format.

        Args:
          every: steps between exports.
          dtype: dtype of the exported tensors, "float32" or "bfloat16".
          export: function to call instead of `soda_jax.convert.to_hf.export`, for tests.

        Raises:
          UserError: if `dtype` is unknown.
        """
        if dtype not in DTYPES:
            raise UserError(f"export.dtype = {dtype!r} is unknown: use {' or '.join(DTYPES)}")
        if export is None:
            from soda_jax.convert.to_hf import export as to_hf

            export = to_hf
        self.every, self._dtype, self._export = every, dtype, export

    def __call__(self, run: Any) -> Mapping[str, float]:
        """Exports `run.params`; returns no metrics.

        Raises:
          UserError: if the folder cannot be written; no partial folder remains.
        """
        folder = run.workdir / FOLDER / f"step-{run.step}"
        # Only the result of process 0 is used, because on other hosts `workdir` may be another
        # local folder.
        if hosts.broadcast_json(folder.exists(), "export there"):
            return {}
        write = hosts.is_primary()
        self._export(
            LiveWeights(run.params, run.model.config, run.mesh),
            folder,
            step=run.step,
            metadata=run.metadata(),
            workdir=run.workdir,
            dtype=self._dtype,
            write=write,
        )
        if write:
            print(f"exported step {run.step} to {folder}", file=sys.stderr, flush=True)
        # The other processes wait here, because a collective of the next step would time out.
        hosts.barrier("export", _SECONDS)
        return {}
