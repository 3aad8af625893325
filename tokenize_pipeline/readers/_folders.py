"""Names of files: the folder that audio paths are relative to, and what is no file of a corpus."""

import os
from collections.abc import Iterable
from pathlib import Path


def common_folder(folders: Iterable[Path]) -> Path:
    """The deepest folder that holds all of them."""
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def place_in(root: Path, path: Path) -> str:
    """The path of a file or folder of the corpus as documents name it, relative to the data root."""
    return path.absolute().relative_to(root).as_posix()


def is_mac_metadata(name: str) -> bool:
    """Whether macOS adds files of this name to folders and archives: `._NAME`, `__MACOSX/…`, `.DS_Store`.

    Args:
      name: relative to the folder or archive.
    """
    file = name.rpartition("/")[2]
    is_one = file.startswith("._") or file == ".DS_Store"
    return is_one or ("__MACOSX" in name and "__MACOSX" in name.split("/")[:-1])
