"""Reads and writes the parameters of a checkpoint in slices, for models larger than memory.

Orbax stores each parameter as a zarr array in an OCDBT store. `SliceReader` reads parts of these arrays
with TensorStore. `new_step` lets Orbax save a tree of the same structure with one element per array, so
that Orbax writes all metadata files, and then replaces each array with one of the full size.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from etils import epath

from soda_jax.checkpoints import digest, tree
from soda_jax.checkpoints.manager import Checkpointer
from soda_jax.checkpoints.restore import PARAMS
from soda_jax.errors import UserError
from soda_jax.files import to_disk

# Size of the chunk cache. A chunk may contain several layers, and one layer is read at a time.
_CACHE_BYTES = 64 << 20
# OCDBT collects data up to this size before it writes a file.
_FILE_BYTES = 64 << 20

Shape = tuple[int, ...]
Index = int | slice
# Writes `values` (f32) to `parameter[index]`: write(name, index, values).
Write = Callable[[str, tuple[Index, ...], np.ndarray], None]


def _spec(item: epath.Path, name: str) -> dict[str, Any]:
    path = os.fspath(item)
    base = path if "://" in path else f"file://{path}"
    store = {"driver": "ocdbt", "base": f"{base}/", "target_data_file_size": _FILE_BYTES}
    return {"driver": "zarr", "kvstore": {**store, "path": f"{name.replace('/', '.')}/"}}


class SliceReader:
    """Reads parts of the parameters of one step.

    Attributes:
      shapes: shape of every parameter by name, such as `layers/query`.
    """

    def __init__(self, step_directory: epath.Path):
        """Opens a step, which must have been verified by `CheckpointReader.choose`."""
        import orbax.checkpoint as ocp
        import tensorstore as ts

        self._item = step_directory / PARAMS
        stored = tree.flatten(ocp.PyTreeCheckpointHandler().metadata(self._item).tree)
        self.shapes: dict[str, Shape] = {name: tuple(leaf.shape) for name, leaf in stored.items()}
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        self._open: dict[str, Any] = {}

    def read(self, name: str, index: tuple[Index, ...]) -> np.ndarray:
        """Returns `parameter[index]`; raises UserError if the data cannot be read."""
        import tensorstore as ts

        try:
            if name not in self._open:
                opening = ts.open(_spec(self._item, name), open=True, context=self._context)
                self._open[name] = opening.result()
            return self._open[name][index].read().result()
        except ValueError as error:  # TensorStore raises ValueError for every error
            reason = " ".join(str(error).split())[:240]
            raise UserError(
                f"{self._item}: {name} cannot be read ({reason}); restore a copy"
            ) from None


@contextmanager
def new_step(
    directory: str | os.PathLike[str],
    step: int,
    arrays: Mapping[str, tuple[Shape, Shape]],
    metadata: Mapping[str, Any],
) -> Iterator[Write]:
    """Yields a function that writes slices of the parameters of a new checkpoint.

    The checkpoint has no training state. Its digest is written last, after fsync, so an unfinished
    checkpoint is never valid.

    Args:
      directory: local parent of the step folder; only one process may write to it at a time.
      step: number of the checkpoint.
      arrays: shape and chunk shape of every parameter by name, such as `layers/query`; all are f32.
      metadata: JSON object, as for `Checkpointer.maybe_save`.
    """
    import jax.numpy as jnp
    import tensorstore as ts

    skeleton: dict[str, Any] = {}
    for name, (shape, _) in arrays.items():
        *folders, leaf = name.split("/")
        node = skeleton
        for part in folders:
            node = node.setdefault(part, {})
        node[leaf] = jnp.zeros((1,) * len(shape), jnp.float32)
    with Checkpointer(directory, every_steps=None) as checkpointer:
        checkpointer.maybe_save(step, {PARAMS: skeleton}, metadata, force=True)
        path = checkpointer.reader.path(step)
    (path / digest.NAME).unlink()
    item = path / PARAMS
    # One fsync of all files at the end takes half the time of an fsync after each write.
    context = ts.Context({"file_io_sync": False})
    stores: dict[str, Any] = {}

    def write(name: str, index: tuple[Index, ...], values: np.ndarray) -> None:
        if name not in stores:
            stores[name] = _create(_spec(item, name), *arrays[name], context)
        stores[name][index].write(values).result()

    yield write
    to_disk(path)
    digest.write_digest(path)


def _create(spec: dict[str, Any], shape: Shape, chunk: Shape, context: Any) -> Any:
    import tensorstore as ts

    metadata = {
        "shape": list(shape),
        "chunks": list(chunk),
        "dtype": "<f4",
        "compressor": None,
        "filters": None,
        "fill_value": None,
        "order": "C",
        "dimension_separator": ".",
    }
    spec = spec | {"metadata": metadata}
    return ts.open(spec, create=True, delete_existing=True, context=context).result()
