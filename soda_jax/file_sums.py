"""Computes and checks sizes and crc32c of files, for manifests, checkpoints and exports."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from soda_jax.errors import UserError

# Names of the tokenizer and codec folders in a data set, a workdir and an export.
FRONT_END = ("tokenizer", "codec")
FileSums = Mapping[str, tuple[int, str]]
_BLOCK_BYTES = 8 << 20


def file_sum(path: Any) -> tuple[int, str]:
    """Returns size in bytes and crc32c (8 hexadecimal digits) of a file.

    Args:
      path: a `pathlib.Path`, or another object with the same `open` method.

    Raises:
      OSError: if the file cannot be read.
    """
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size += len(block)
            crc = google_crc32c.extend(crc, block)
    return size, f"{crc:08x}"


def folder_sums(root: str | os.PathLike[str], *folders: str) -> dict[str, tuple[int, str]]:
    """Returns `file_sum` of every file in the given folders of `root`.

    The keys are paths relative to `root`, such as `codec/codec.json`.
    """
    return {name: file_sum(Path(root, name)) for folder in folders for name in _names(root, folder)}


def differences(
    root: str | os.PathLike[str], sums: FileSums, folder: str, prefix: str | None = None
) -> Iterator[tuple[str, str]]:
    """Yields (name, message) for every file in `folder` that differs from `sums`.

    Args:
      root: the folder that contains `folder`.
      sums: result of `folder_sums`; entries for other folders are ignored.
      folder: name of the folder in `root`.
      prefix: name of the folder in `sums`; `folder` by default.
    """
    prefix = folder if prefix is None else prefix
    wanted = {
        folder + name.removeprefix(prefix): total
        for name, total in sums.items()
        if name.startswith(f"{prefix}/")
    }
    for name, (size, crc) in wanted.items():
        try:
            found_size, found_crc = file_sum(Path(root, name))
        except OSError as error:
            yield name, f"cannot be read ({error.strerror})"
            continue
        if (found_size, found_crc) != (size, crc):
            yield (
                name,
                f"is damaged: {found_size:,} bytes with crc32c {found_crc}, but {size:,} bytes with {crc} "
                "were written",
            )
    for name in _names(root, folder):
        if name not in wanted:
            yield name, "did not exist when the folder was written"


def check_folder(
    root: str | os.PathLike[str], sums: FileSums, folder: str, prefix: str | None = None
) -> None:
    """Raises UserError for the first of the `differences` with the same arguments."""
    for name, message in differences(root, sums, folder, prefix):
        raise UserError(f"{Path(root, name)} {message}; restore the folder {Path(root, folder)}")


def _names(root: str | os.PathLike[str], folder: str) -> list[str]:
    files = (path for path in Path(root, folder).rglob("*") if path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in files)
