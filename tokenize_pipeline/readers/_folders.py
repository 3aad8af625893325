"""Where a corpus begins: the folder that all audio paths of its documents are relative to."""

import os
from collections.abc import Iterable
from pathlib import Path


def common_folder(folders: Iterable[Path]) -> Path:
    """The deepest folder that holds all of them."""
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def place_in(root: Path, path: Path) -> str:
    """The path of a file or folder of the corpus as documents name it, relative to the data root."""
    return path.absolute().relative_to(root).as_posix()
