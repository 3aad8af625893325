"""Reads tensors or rows from a folder of safetensors, and writes such a folder file by file."""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import ml_dtypes
import numpy as np

from soda_jax.errors import UserError
from soda_jax.files import write_json
from soda_jax.progress import Progress

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 1 << 30
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_CHECKSUM_BYTES = 8 << 20
_CHECKSUM_VALUES = 16 << 20


def checksum(tensor: np.ndarray, crc: int = 0) -> str:
    """Returns the crc32c of a tensor's bytes as 8 hexadecimal digits.

    Args:
      tensor: the values.
      crc: crc32c of the preceding rows, to continue their checksum.
    """
    data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    for start in range(0, len(data), _CHECKSUM_BYTES):
        crc = google_crc32c.extend(crc, data[start : start + _CHECKSUM_BYTES].tobytes())
    return f"{crc:08x}"


class _Tensor(NamedTuple):
    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int  # in the file, in bytes


class TensorFolder:
    """Reads the tensors of a folder. Opening reads only headers; a pickle is never opened.

    Attributes:
      path: the folder.
      tensors: file, shape, dtype and offset of each tensor by name.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Opens the folder.

        Raises:
          UserError: if there are no safetensors, the index disagrees with the files, a file is
            truncated or damaged, a dtype is not f32, f16 or bf16, or the model has an adapter.
        """
        self.path = Path(path)
        self.tensors: dict[str, _Tensor] = {}
        index, single = self.path / INDEX, self.path / SINGLE
        for name in _ADAPTERS:
            if (self.path / name).exists():
                raise UserError(
                    f"{self.path / name}: the model has an adapter; merge it (merge_and_unload of peft), "
                    "or remove its files to convert the model without it"
                )
        # As in Transformers, model.safetensors overrides the index of a sharded model.
        listed: dict[str, str] = {}
        if single.is_file():
            if index.is_file():
                print(f"reading {single}; {INDEX} is ignored, as in Transformers", file=sys.stderr)
        elif index.is_file():
            listed = _read_index(index)
        else:
            raise UserError(_no_tensors(self.path))
        for file in sorted(set(listed.values())) or [SINGLE]:
            if Path(file).name != file or file in ("", ".."):
                raise UserError(f"{index}: {file!r} is outside the folder; it is not opened")
            for name, tensor in _read_header(self.path / file).items():
                if name in self.tensors:
                    raise UserError(
                        f"{self.path / file}: {name} is also in {self.tensors[name].file.name}; "
                        "download the folder again"
                    )
                self.tensors[name] = tensor
        for name, file in listed.items():
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise UserError(
                    f"{index}: {name} is listed in {file}, which does not contain it; "
                    "download the folder again"
                )

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Compares names and shapes with `expected`; raises UserError at the first difference."""
        for name, shape in expected.items():
            if name not in self.tensors:
                raise UserError(f"{self.path}: tensor {name} is missing; download the folder again")
            found = self.tensors[name]
            if found.shape != tuple(shape):
                raise UserError(
                    f"{found.file}: {name} has shape {list(found.shape)}, config.json gives "
                    f"{list(shape)}; use the config.json that belongs to these weights"
                )
        for name, tensor in self.tensors.items():
            if name not in expected:
                raise UserError(
                    f"{tensor.file}: a Qwen3 decoder with this config.json has no tensor {name}; "
                    "such a model cannot be converted"
                )

    def read(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Returns the rows `first … last − 1` of a tensor in its dtype; all rows by default."""
        tensor = self.tensors[name]
        last = tensor.shape[0] if last is None else last
        row = math.prod(tensor.shape[1:])
        offset = tensor.offset + first * row * tensor.dtype.itemsize
        try:
            # Slicing with the safetensors library reads the whole tensor, or maps the file into
            # memory, where the mapped pages count as memory of this process.
            values = np.fromfile(tensor.file, tensor.dtype, (last - first) * row, offset=offset)
            return values.reshape(last - first, *tensor.shape[1:])
        except (OSError, ValueError) as error:
            raise UserError(
                f"{tensor.file}: {name} cannot be read ({error}); download the file again"
            ) from None

    def read_f32(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Returns the rows that `read` returns, converted to f32."""
        return self.read(name, first, last).astype(np.float32, copy=False)

    def check_sums(
        self, sums: Mapping[str, str], dtype: str | None, bar: Progress, fix: str
    ) -> None:
        """Reads every tensor and compares names, dtypes and checksums.

        Args:
          sums: expected crc32c of every tensor, by name.
          dtype: expected dtype, "float32" or "bfloat16"; None accepts any.
          bar: progress bar in megabytes.
          fix: hint for the error message.

        Raises:
          UserError: if names, a dtype or a checksum differ.
        """
        if differing := sorted(self.tensors.keys() ^ sums.keys()):
            problem = "has no checksum" if differing[0] in self.tensors else "is missing"
            raise UserError(f"{self.path}: tensor {differing[0]} {problem}; {fix}")
        for name, tensor in self.tensors.items():
            if dtype is not None and tensor.dtype.name != dtype:
                raise UserError(
                    f"{tensor.file}: {name} is {tensor.dtype}, {dtype} was written; {fix}"
                )
            found = "0"
            step = max(1, _CHECKSUM_VALUES // math.prod(tensor.shape[1:]))
            for first in range(0, tensor.shape[0], step):
                rows = self.read(name, first, min(first + step, tensor.shape[0]))
                found = checksum(rows, int(found, 16))
                bar.advance(rows.nbytes / 1e6)
            if found != sums[name]:
                raise UserError(
                    f"{tensor.file}: {name} has crc32c {found}, {sums[name]} was written; {fix}"
                )


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: str,
    shard_bytes: int,
    bar: Progress,
) -> dict[str, str]:
    """Writes safetensors files, and an index if there are several.

    Args:
      path: an existing folder.
      shapes: shape of every tensor, in the order of `tensors`.
      tensors: names and values. The tensors of one file are in memory at the same time.
      dtype: "float32" or "bfloat16".
      shard_bytes: maximum size of a file; a larger tensor is written to a separate file.
      bar: progress bar in megabytes.

    Returns:
      the crc32c of every tensor.

    Raises:
      UserError: if a file cannot be written.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    plan = split_state_dict_into_shards_factory(
        dict(shapes),
        get_storage_size=lambda shape: math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    sums: dict[str, str] = {}
    held: dict[str, dict[str, np.ndarray]] = {file: {} for file in plan.filename_to_tensors}
    for name, tensor in tensors:
        values = np.ascontiguousarray(tensor.astype(DTYPES[dtype], copy=False))
        sums[name] = checksum(values)
        bar.advance(values.nbytes / 1e6)
        file = plan.tensor_to_filename[name]
        held[file][name] = values
        if len(held[file]) < len(plan.filename_to_tensors[file]):
            continue
        try:
            # Transformers rejects a file without this metadata.
            save_file(held.pop(file), path / file, metadata={"format": "pt"})
            (path / file).chmod(0o644)  # the library makes the file readable only by its owner
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path / file}: cannot be written ({error}); is the disk full?"
            ) from None
    if plan.is_sharded:
        content = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(path / INDEX, content)
    return sums


def _read_header(path: Path) -> dict[str, _Tensor]:
    """Returns the tensors of a file, after the safetensors library has checked header and size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; download the folder again") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({error}); download it again"
        ) from None
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        if about["dtype"] not in _TYPES:
            raise UserError(
                f"{path}: {name} has dtype {about['dtype']}; only {', '.join(_TYPES)} "
                "can be converted"
            )
        dtype, offset = np.dtype(_TYPES[about["dtype"]]), 8 + size + about["data_offsets"][0]
        tensors[name] = _Tensor(path, tuple(about["shape"]), dtype, offset)
    return tensors


def _read_index(index: Path) -> dict[str, str]:
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(file, str) for file in listed.values()):
            raise ValueError("the name of a file is not a string")
        return dict(listed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is not a safetensors index ({error}); download it again"
        ) from None


def _no_tensors(path: Path) -> str:
    for name in (SINGLE, INDEX):
        if (path / name).is_symlink():
            return f"{path / name} is a link to a missing file; download the model again"
    if not path.is_dir():
        return f"{path}: no such folder; pass the folder of a Hugging Face model"
    for pattern in _PICKLES:
        for file in sorted(path.glob(pattern)):
            return (
                f"{file} is a pickle, which can run any code and is never opened; "
                "download the model as safetensors"
            )
    return f"{path} has neither {SINGLE} nor {INDEX}; pass the folder of a Hugging Face model"
