"""Size and crc32c of files: what a manifest, a checkpoint and an export store of the files next to them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from soda_jax.errors import UserError

# Folders of a data set, a run and an export: what makes ids of text and of sound.
FRONT_END = ("tokenizer", "codec")
FileSums = Mapping[str, tuple[int, str]]
_BLOCK_BYTES = 8 << 20


def file_sum(path: Any) -> tuple[int, str]:
    """Returns size in bytes and crc32c (8 hexadecimal digits) of a file.

    Args:
      path: a `pathlib.Path` or a path of a store, with its `open`.

    Raises:
      OSError: if it cannot be read.
    """
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size += len(block)
            crc = google_crc32c.extend(crc, block)
    return size, f"{crc:08x}"


def folder_sums(root: str | os.PathLike[str], *folders: str) -> dict[str, tuple[int, str]]:
    """Returns `file_sum` of every file in some folders of `root`, by name such as `codec/codec.json`."""
    return {name: file_sum(Path(root, name)) for folder in folders for name in _names(root, folder)}


def differences(
    root: str | os.PathLike[str], sums: FileSums, folder: str, prefix: str | None = None
) -> Iterator[tuple[str, str]]:
    """Yields the files of `folder` that are not those of `sums`: (name, what is wrong with it).

    Args:
      root: where the folder is.
      sums: what `folder_sums` returned; entries of other folders are ignored.
      folder: its name in `root`.
      prefix: its name in `sums`, if another.
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
                f"is damaged: {found_size:,} bytes of crc32c {found_crc}, {size:,} of {crc} were "
                "written",
            )
    for name in _names(root, folder):
        if name not in wanted:
            yield name, "was not there when the folder was written"


def check_folder(
    root: str | os.PathLike[str], sums: FileSums, folder: str, prefix: str | None = None
) -> None:
    """Raises UserError for the first of `differences`; the arguments are the same."""
    for name, message in differences(root, sums, folder, prefix):
        raise UserError(f"{Path(root, name)} {message}; restore the folder {Path(root, folder)}")


def _names(root: str | os.PathLike[str], folder: str) -> list[str]:
    files = (path for path in Path(root, folder).rglob("*") if path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in files)
