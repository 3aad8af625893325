"""The arrays of a checkpoint slice by slice, through TensorStore: for what is larger than memory.

Orbax stores each parameter as a zarr array in one OCDBT store a process, joined in one. `SliceReader`
reads parts of such arrays. `new_step` writes a step whose arrays come in parts: Orbax saves a
skeleton of the same tree with one element an array, so that every file that describes the checkpoint is
its own, and TensorStore then writes the arrays at their size in place of those.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from soda_jax.checkpoints import digest, tree
from soda_jax.checkpoints.manager import Checkpointer
from soda_jax.checkpoints.restore import PARAMS
from soda_jax.errors import UserError
from soda_jax.files import to_disk

# Chunks that were read and may be wanted again, as when one holds several layers.
_CACHE_BYTES = 64 << 20
# OCDBT gathers what is written up to this size before it writes a file.
_FILE_BYTES = 64 << 20
_TREE = "_METADATA"

Index = int | slice


def _spec(item: epath.Path, name: str) -> dict[str, Any]:
    where = os.fspath(item)
    base = where if "://" in where else f"file://{where}"
    store = {"driver": "ocdbt", "base": f"{base}/", "target_data_file_size": _FILE_BYTES}
    return {"driver": "zarr", "kvstore": {**store, "path": f"{name.replace('/', '.')}/"}}


class SliceReader:
    """Parts of the parameters of one step.

    Attributes:
      shapes: of every parameter, by its name `layers/query`.
    """

    def __init__(self, step_directory: epath.Path, cache_bytes: int = _CACHE_BYTES):
        """Opens a step that was chosen and verified by `CheckpointReader.choose`.

        Args:
          step_directory: of the step.
          cache_bytes: of chunks kept; a checkpoint whose chunks are larger is read again and again.
        """
        import orbax.checkpoint as ocp
        import tensorstore as ts

        self._item = step_directory / PARAMS
        stored = tree.flatten(ocp.PyTreeCheckpointHandler().metadata(self._item).tree)
        self.shapes = {name: tuple(leaf.shape) for name, leaf in stored.items()}
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
        self._open: dict[str, Any] = {}

    def read(self, name: str, index: Index | tuple[Index, ...] = ()) -> np.ndarray:
        """`parameter[index]`; UserError if the store has lost a part of it."""
        import tensorstore as ts

        try:
            if name not in self._open:
                opening = ts.open(_spec(self._item, name), open=True, context=self._context)
                self._open[name] = opening.result()
            return self._open[name][index].read().result()
        except ValueError as error:  # what TensorStore raises for every fault of a store
            reason = " ".join(str(error).split())[:240]
            raise UserError(
                f"{self._item}: {name} cannot be read ({reason}); restore a copy"
            ) from None


class NewArray(NamedTuple):
    """An f32 array that `SliceWriter` writes.

    Attributes:
      shape: of the array.
      chunk: shape of what is stored, and best written and read, at once.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]


class SliceWriter:
    """Writes the arrays of a new step, part by part; `new_step` makes one."""

    def __init__(self, item: epath.Path, arrays: Mapping[str, NewArray]):
        import tensorstore as ts

        # Files are brought to the disk all together at the end: waiting for each takes half the time.
        self._context = ts.Context({"file_io_sync": False})
        self._item, self._arrays = item, arrays
        self._open: dict[str, Any] = {}

    def write(self, name: str, index: Index | tuple[Index, ...], values: np.ndarray) -> None:
        """`parameter[index] = values`, f32."""
        if name not in self._open:
            self._open[name] = self._create(name)
        self._open[name][index].write(values).result()

    def _create(self, name: str) -> Any:
        import tensorstore as ts

        array = self._arrays[name]
        metadata = {
            "shape": list(array.shape),
            "chunks": list(array.chunk),
            "dtype": "<f4",
            "compressor": None,
            "filters": None,
            "fill_value": None,
            "order": "C",
            "dimension_separator": ".",
        }
        spec = _spec(self._item, name) | {"metadata": metadata}
        return ts.open(spec, create=True, delete_existing=True, context=self._context).result()


@contextmanager
def new_step(
    directory: str | os.PathLike[str],
    step: int,
    arrays: Mapping[str, NewArray],
    metadata: Mapping[str, Any],
) -> Iterator[SliceWriter]:
    """Writes a checkpoint of parameters alone; at the end it is brought to the disk and sealed.

    It is not sealed while it is being written, so that nobody takes half of it for a checkpoint.

    Args:
      directory: a local folder for the step's folder; one writer at a time.
      step: number of the checkpoint.
      arrays: every parameter, by its name `layers/query`.
      metadata: as for `Checkpointer.maybe_save`.
    """
    import jax.numpy as jnp

    skeleton: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, leaf = name.split("/")
        place = skeleton
        for part in folders:
            place = place.setdefault(part, {})
        place[leaf] = jnp.zeros((1,) * len(array.shape), jnp.float32)
    with Checkpointer(directory, every_steps=None) as checkpointer:
        checkpointer.maybe_save(step, {PARAMS: skeleton}, metadata, force=True)
        path = checkpointer.reader.path(step)
    (path / digest.NAME).unlink()
    yield SliceWriter(path / PARAMS, arrays)
    _describe(path / PARAMS, arrays)
    to_disk(path)
    digest.write_digest(path)


def _describe(item: epath.Path, arrays: Mapping[str, NewArray]) -> None:
    """Gives the skeleton's description the shapes of the arrays."""
    about = json.loads((item / _TREE).read_text())
    for leaf in about["tree_metadata"].values():
        name = "/".join(part["key"] for part in leaf["key_metadata"])
        leaf["value_metadata"]["write_shape"] = list(arrays[name].shape)
    (item / _TREE).write_text(json.dumps(about))
    # It repeats shapes and chunks, for arrays of more than one process; restoring does not need it.
    (item / "array_metadatas").rmtree()
