"""Paths of a corpus relative to its data root, and files that do not belong to a corpus."""

import os
from collections.abc import Iterable
from pathlib import Path


def common_folder(folders: Iterable[Path]) -> Path:
    """Returns the deepest folder that contains all `folders`."""
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def relative_path(root: Path, path: Path) -> str:
    """Returns the path of a file or folder relative to the data root, with forward slashes."""
    return path.absolute().relative_to(root).as_posix()


def is_mac_metadata(name: str) -> bool:
    """Whether macOS adds files of this name to folders and archives: `._NAME`, `__MACOSX/…`, `.DS_Store`.

    Args:
      name: path relative to the folder or archive.
    """
    file = name.rpartition("/")[2]
    is_one = file.startswith("._") or file == ".DS_Store"
    return is_one or ("__MACOSX" in name and "__MACOSX" in name.split("/")[:-1])
