"""Files that are either whole or absent."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

_LARGE = 16 * 2**20  # bytes


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes `content` to `path` so that a reader sees the old file or the new one, never a part.

    The bytes go to a temporary file in the same folder, reach the disk (fsync), and are renamed.
    The folder is made if it is missing.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner reads; a data set is shared.
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Gives a large file that is never changed a second name; copies a small one.

    A small file may be a text that somebody edits where it lies, and both names would change with it.
    A large one (weights) is copied too where the file system has no links.
    """
    if os.path.getsize(source) >= _LARGE:
        try:
            os.link(os.path.realpath(source), target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)


def json_text(value: Any) -> str:
    """`value` as indented JSON with a final newline; keys keep their order."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `json_text(value)`, atomically."""
    write_atomic(path, json_text(value))


def to_disk(folder: str | os.PathLike[str]) -> None:
    """Brings all files below a folder, and the folders themselves, to the disk (fsync)."""
    root = Path(folder)
    for path in (*root.rglob("*"), root):
        sync(path)


def sync(path: str | os.PathLike[str]) -> None:
    """Brings one file, or the names in one folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
