"""A folder of safetensors, in one file or in several with an index; read and written a tensor at a time."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import ml_dtypes
import numpy as np

from soda_jax.errors import UserError
from soda_jax.files import write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 1 << 30
_CHECKSUM_BYTES = 8 << 20
_PART_VALUES = 16 << 20
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_TYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def checksum(tensor: np.ndarray) -> str:
    """crc32c of the bytes of a tensor as they are stored, 8 hex digits."""
    return f"{_extend(0, tensor):08x}"


def _extend(crc: int, tensor: np.ndarray) -> int:
    plain = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    for start in range(0, len(plain), _CHECKSUM_BYTES):
        crc = google_crc32c.extend(crc, plain[start : start + _CHECKSUM_BYTES].tobytes())
    return crc


class _Tensor(NamedTuple):
    file: str
    shape: tuple[int, ...]
    dtype: str
    offset: int  # in the file, in bytes


class TensorFolder:
    """The tensors of a folder; nothing but headers is read at first, and no pickle ever.

    Attributes:
      path: of the folder.
      tensors: file, shape, type and place of each, by name.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Opens the folder.

        Raises:
          UserError: naming the file, if there are no safetensors, the index does not agree with the
            files, a file is cut off or damaged, or a type is not one of f32, f16 and bf16.
        """
        self.path = Path(path)
        self.tensors: dict[str, _Tensor] = {}
        index, single = self.path / INDEX, self.path / SINGLE
        # As Transformers does: a whole file may be there next to the index of older ones.
        where = _read_index(index) if index.is_file() and not single.is_file() else None
        files = sorted(set(where.values())) if where is not None else [SINGLE]
        if where is None and not single.is_file():
            raise UserError(_nothing_here(self.path))
        if where is None and index.is_file():
            print(f"{single} is read; {INDEX} is ignored, as by Transformers", file=sys.stderr)
        for file in _ADAPTERS:
            if (self.path / file).exists():
                raise UserError(
                    f"{self.path / file}: the model has an adapter; merge it (merge_and_unload of peft), "
                    "or remove its files to convert the model without it"
                )
        for file in files:
            if Path(file).name != file or file in ("", ".."):
                raise UserError(f"{index}: {file!r} lies outside the folder; not opened")
            for name, tensor in _read_header(self.path / file).items():
                if name in self.tensors:
                    raise UserError(
                        f"{self.path / file}: {name} is also in {self.tensors[name].file}; "
                        "get the folder again"
                    )
                self.tensors[name] = tensor
        for name, file in (where or {}).items():
            if name not in self.tensors or self.tensors[name].file != file:
                raise UserError(
                    f"{index}: {name} is to be in {file} and is not; get the folder again"
                )
        for name, tensor in self.tensors.items():
            if tensor.dtype not in _TYPES:
                raise UserError(
                    f"{self.path / tensor.file}: {name} is of type {tensor.dtype}; "
                    f"{', '.join(_TYPES)} can be converted"
                )

    @property
    def files(self) -> dict[str, Path]:
        """The file of every tensor, by name."""
        return {name: self.path / tensor.file for name, tensor in self.tensors.items()}

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Compares names and shapes with `expected`; UserError names the first that differs."""
        for name, shape in expected.items():
            if name not in self.tensors:
                raise UserError(f"{self.path}: tensor {name} is missing; get the folder again")
            found = self.tensors[name]
            if found.shape != tuple(shape):
                raise UserError(
                    f"{self.path / found.file}: {name} has shape {list(found.shape)}, config.json "
                    f"makes it {list(shape)}; take the config.json of these weights"
                )
        for name, tensor in self.tensors.items():
            if name not in expected:
                raise UserError(
                    f"{self.path / tensor.file}: tensor {name} has no place in a Qwen3 decoder of this "
                    "config.json; such a model cannot be converted"
                )

    def read(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Rows `first … last − 1` of a tensor in its own type; all of it by default."""
        tensor = self.tensors[name]
        dtype = np.dtype(_TYPES[tensor.dtype])
        last = tensor.shape[0] if last is None else last
        row = int(np.prod(tensor.shape[1:]))
        file = self.path / tensor.file
        try:
            # The library's own slices read the whole tensor, or map the file, whose pages then count
            # as memory of this process.
            values = np.fromfile(
                file,
                dtype,
                (last - first) * row,
                offset=tensor.offset + first * row * dtype.itemsize,
            )
            return values.reshape(last - first, *tensor.shape[1:])
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: {name} cannot be read ({error}); get it again") from None

    def read_f32(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """As `read`, in f32."""
        return self.read(name, first, last).astype(np.float32, copy=False)

    def checksum(self, name: str) -> str:
        """crc32c of a tensor as `checksum` has it, read in parts."""
        shape, crc = self.tensors[name].shape, 0
        rows = max(1, _PART_VALUES // int(np.prod(shape[1:])))
        for first in range(0, shape[0], rows):
            crc = _extend(crc, self.read(name, first, min(first + rows, shape[0])))
        return f"{crc:08x}"


class TensorWriter:
    """Writes tensors in the order of `shapes` into as few files as their size allows."""

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
        shard_bytes: int = SHARD_BYTES,
    ):
        """Plans the files.

        Args:
          path: an existing folder.
          shapes: every tensor in the order in which they will come.
          dtype: "float32" or "bfloat16".
          shard_bytes: of a file at most, unless one tensor alone is larger; as much is held in memory.
        """
        self.path, self.dtype = path, np.dtype(DTYPES[dtype])
        self.checksums: dict[str, str] = {}
        sizes = {name: int(np.prod(shape)) * self.dtype.itemsize for name, shape in shapes.items()}
        self.bytes = sum(sizes.values())
        groups: list[list[str]] = [[]]
        room = shard_bytes
        for name, size in sizes.items():
            if size > room and groups[-1]:
                groups.append([])
                room = shard_bytes
            groups[-1].append(name)
            room -= size
        files = (
            [SINGLE]
            if len(groups) == 1
            else [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
        )
        self._file_of = {
            name: file for file, names in zip(files, groups, strict=True) for name in names
        }
        self._last = {names[-1] for names in groups}
        self._shapes = dict(shapes)
        self._held: dict[str, np.ndarray] = {}

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Takes a tensor, and writes its file when it was the last one of it.

        Raises:
          UserError: if a file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        assert tensor.shape == tuple(self._shapes[name]), name
        self._held[name] = np.ascontiguousarray(tensor.astype(self.dtype, copy=False))
        self.checksums[name] = checksum(self._held[name])
        if name not in self._last:
            return
        file = self.path / self._file_of[name]
        try:
            # Without the mark Transformers does not load a file.
            save_file(self._held, file, metadata={"format": "pt"})
            file.chmod(0o644)  # the library lets only the owner read it
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: cannot be written ({error}); is the disk full?") from None
        self._held = {}

    def finish(self) -> None:
        """Writes the index, if there are several files."""
        assert not self._held and self.checksums.keys() == self._shapes.keys()
        if len(set(self._file_of.values())) > 1:
            content = {"metadata": {"total_size": self.bytes}, "weight_map": self._file_of}
            write_json(self.path / INDEX, content)


def _read_header(path: Path) -> dict[str, _Tensor]:
    """The tensors of a file, after the library has found that they fill it without a gap."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; get the folder again") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); get it again") from None
    return {
        name: _Tensor(
            path.name, tuple(about["shape"]), about["dtype"], 8 + size + about["data_offsets"][0]
        )
        for name, about in header.items()
        if name != "__metadata__"
    }


def _read_index(index: Path) -> dict[str, str]:
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(file, str) for file in where.values()):
            raise ValueError("a name of a file is not a string")
        return dict(where)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of safetensors ({error}); get it again") from None


def _nothing_here(path: Path) -> str:
    for name in (SINGLE, INDEX):
        if (path / name).is_symlink():
            return f"{path / name} is a link to a file that is not there; get the model again"
    if not path.is_dir():
        return f"{path}: there is no such folder; name the one of a Hugging Face model"
    for pattern in _PICKLES:
        for file in sorted(path.glob(pattern)):
            return (
                f"{file} is a pickle, which can run any code and is never opened; get the model as "
                "safetensors"
            )
    return f"{path}: neither {SINGLE} nor {INDEX} is there; name the folder of a Hugging Face model"
