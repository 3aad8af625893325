"""Writes files atomically and durably."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError

_LARGE = 16 * 2**20  # bytes


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes `content` to `path` so that a reader sees either the old file or the complete new one.

    The bytes are written to a temporary file in the same folder, which is synced to disk (fsync)
    and then renamed. A missing folder is created.
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
        # mkstemp creates files that only the owner can read, but data sets are shared.
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def check_output(path: str | os.PathLike[str], option: str) -> None:
    """Creates the folder of an output file, before anything is computed for it.

    Args:
      path: the file.
      option: the option that gives it, for the message.

    Raises:
      UserError: if no file can be written there.
    """
    target = Path(path)
    try:
        if target.is_dir() or not target.name:
            raise IsADirectoryError(None, "it is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise UserError(
            f"{option}={path} cannot be written ({error.strerror}): give a file in a folder that you may "
            "write to"
        ) from None


def check_output_folder(path: str | os.PathLike[str], option: str) -> None:
    """Checks that a folder can be created, or written to if it exists; creates nothing.

    Args:
      path: the folder.
      option: the option that gives it, with its value, for the message.

    Raises:
      UserError: if a file is in the way, or the first folder above `path` that exists is not writable.
    """
    target = Path(path)
    known = next(folder for folder in (target, *target.parents) if os.path.lexists(folder))
    if not known.is_dir():
        raise UserError(f"{option}: {known} is a file: give another folder")
    try:
        with tempfile.TemporaryFile(dir=known):
            pass
    except OSError as error:
        raise UserError(
            f"{option}: {known} cannot be written ({error.strerror}): give a folder that you may write to"
        ) from None


def file_state(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """Returns (path, size in bytes, modification time in ns), which change with a file; −1 if it is missing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return os.fspath(path), -1, -1
    return os.fspath(path), status.st_size, status.st_mtime_ns


def is_url(location: str | os.PathLike[str]) -> bool:
    """Returns whether a location is a URL rather than a local path."""
    return "://" in os.fspath(location)


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Creates a hard link to a large file (weights), or a copy of a small one.

    Small files are copied because a user may edit them, and editing a hard link would change
    the original too. A large file is copied if it cannot be linked.
    """
    if os.path.getsize(source) >= _LARGE:
        try:
            os.link(os.path.realpath(source), target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, target)


def json_text(value: Any) -> str:
    """Returns `value` as indented JSON with a final newline; keys keep their order."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `json_text(value)` atomically."""
    write_atomic(path, json_text(value))


def to_disk(folder: str | os.PathLike[str]) -> None:
    """Syncs a folder, and all files and folders in it, to disk (fsync)."""
    root = Path(folder)
    for path in (*root.rglob("*"), root):
        sync(path)


def sync(path: str | os.PathLike[str]) -> None:
    """Syncs the content of a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
