"""The digest file of a checkpoint: size and crc32c of every file, and the SHA-256 of this list.

Orbax does not detect a flipped bit in array data; the digest does. The digest is computed after the
commit, from files that are read back from storage. It therefore detects damage that occurs after
the save, but not errors that occurred while the files were written.
"""

import hashlib
import os
from collections.abc import Collection, Mapping

import google_crc32c
from etils import epath

from soda_jax.checked_json import DamagedError, checked_json, parse_checked_json
from soda_jax.errors import UserError
from soda_jax.file_sums import file_sum

NAME = "digest.json"
VERSION = 2
# Timeout of the other processes while process 0 reads whole checkpoints.
TIMEOUT_SECONDS = 4 * 3600.0


def _files(folder: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    found: dict[str, epath.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found |= _files(path, f"{prefix}{path.name}/")
        elif prefix or not path.name.startswith((NAME, f".{NAME}")):
            found[prefix + path.name] = path
    return found


def write_digest(step_directory: epath.Path) -> None:
    """Writes the digest of a committed checkpoint atomically."""
    sums = {name: file_sum(path) for name, path in _files(step_directory).items()}
    _write(step_directory, NAME, _content(sums))


def _content(sums: Mapping[str, tuple[int, str]]) -> bytes:
    return checked_json({"digest_version": VERSION, "files": sums}).encode()


def _write(step_directory: epath.Path, name: str, content: bytes) -> None:
    """Writes one file of a checkpoint atomically."""
    if "://" in os.fspath(step_directory):
        # An object store has no rename, but its writes are atomic.
        (step_directory / name).write_bytes(content)
        return
    temporary = step_directory / f".{NAME}.tmp"
    temporary.write_bytes(content)
    temporary.replace(step_directory / name)


def has_digest(step_directory: epath.Path) -> bool:
    """Returns whether the checkpoint has a digest file, without reading the file."""
    return (step_directory / NAME).exists()


def identity(step_directory: epath.Path) -> str:
    """Returns the SHA-256 of the digest file in hex, which identifies a checkpoint; "" without one."""
    if not has_digest(step_directory):
        return ""
    return hashlib.sha256((step_directory / NAME).read_bytes()).hexdigest()


def replace_file(step_directory: epath.Path, name: str, content: bytes) -> None:
    """Replaces a file of a valid checkpoint, and the entry of the file in the digest.

    The digest is written before the file. If the process is killed in between, the checkpoint is
    invalid until the same call is repeated.

    Raises:
      UserError: if the checkpoint is damaged.
    """
    sums, reason = _read(step_directory)
    total = (len(content), f"{google_crc32c.value(content):08x}")
    if reason is None and sums.get(name) != total:
        reason = verify_digest(step_directory)
        sums[name] = total
    elif reason is None:  # an earlier call wrote the digest, perhaps not the file
        reason = _verify_files(
            {other: sums[other] for other in sums if other != name}, step_directory
        )
    if reason is not None:
        raise UserError(f"{step_directory} was not changed: {reason}; restore a copy or remove it")
    _write(step_directory, NAME, _content(sums))
    _write(step_directory, name, content)


def verify_digest(step_directory: epath.Path, items: Collection[str] | None = None) -> str | None:
    """Compares the files of a checkpoint with its digest.

    Args:
      step_directory: folder of one step, which must contain a digest.
      items: names of the subfolders to check; files at the top level are always checked. None
        checks everything.

    Returns:
      None if every file matches, else the reason why the checkpoint is invalid.
    """
    sums, reason = _read(step_directory)
    if reason is not None:
        return reason
    parts = ((name, name.partition("/")) for name in sums)
    wanted = {n for n, (top, _, inside) in parts if items is None or not inside or top in items}
    return _verify_files({name: sums[name] for name in sums if name in wanted}, step_directory)


def _read(step_directory: epath.Path) -> tuple[dict[str, tuple[int, str]], str | None]:
    """Returns the checksums in a digest, and why the digest is invalid (None if it is valid)."""
    try:
        record = parse_checked_json((step_directory / NAME).read_bytes())
    except DamagedError as error:
        return {}, f"{NAME} is invalid: {error}"
    except OSError as error:
        return {}, f"{NAME} cannot be read ({error})"
    if record.get("digest_version") != VERSION:
        found = record.get("digest_version")
        return {}, f"{NAME} has version {found}, this program reads {VERSION}"
    return {name: (size, crc) for name, (size, crc) in record["files"].items()}, None


def _verify_files(sums: Mapping[str, tuple[int, str]], step_directory: epath.Path) -> str | None:
    """Returns the first difference between `sums` and the files; None if they match."""
    for name, (size, crc) in sums.items():
        try:
            found_size, found_crc = file_sum(step_directory / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error})"
        if found_size != size:
            return f"{name} has {found_size:,} bytes, {size:,} were saved"
        if found_crc != crc:
            return f"{name} is damaged: crc32c {found_crc}, {crc} was saved"
    return None
