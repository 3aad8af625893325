"""The seal of a checkpoint: size and crc32c of every file, and its own SHA-256, written after the commit.

Orbax does not notice a flipped bit in array data; this file does (invariant 8 of the design).
The sums are read back from the store right after the commit, so they catch what happens to a
checkpoint at rest, not an error between memory and that first reading.
"""

import os
from collections.abc import Collection, Mapping

import google_crc32c
from etils import epath

from soda_jax.checked_json import DamagedError, checked_json, parse_checked_json
from soda_jax.errors import UserError
from soda_jax.file_sums import file_sum

NAME = "digest.json"
VERSION = 2
# How long the others wait for process 0, which reads whole checkpoints.
SECONDS = 4 * 3600.0


def _files(folder: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    found: dict[str, epath.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found |= _files(path, f"{prefix}{path.name}/")
        elif prefix or not path.name.startswith((NAME, f".{NAME}")):
            found[prefix + path.name] = path
    return found


def seal(step_directory: epath.Path) -> None:
    """Writes the digest of a committed checkpoint: a whole file or none."""
    sums = {name: file_sum(path) for name, path in _files(step_directory).items()}
    _write(step_directory, NAME, _content(sums))


def _content(sums: Mapping[str, tuple[int, str]]) -> bytes:
    return checked_json({"digest_version": VERSION, "files": sums}).encode()


def _write(step_directory: epath.Path, name: str, content: bytes) -> None:
    """Writes a file of a checkpoint: all of it, or nothing."""
    if "://" in os.fspath(step_directory):
        # An object store has no rename, and needs none: an object appears when it is whole.
        (step_directory / name).write_bytes(content)
        return
    temporary = step_directory / f".{NAME}.tmp"
    temporary.write_bytes(content)
    temporary.replace(step_directory / name)


def is_sealed(step_directory: epath.Path) -> bool:
    """True if the checkpoint has a digest file, whatever it says."""
    return (step_directory / NAME).exists()


def replace(step_directory: epath.Path, name: str, content: bytes) -> None:
    """Replaces a file of a sealed checkpoint that has no flaw, and its entry in the digest.

    The digest is written first. If the program is killed before the file follows, the step counts as damaged
    until the same call is made again.

    Raises:
      UserError: if the checkpoint is damaged.
    """
    sums, reason = _read(step_directory)
    total = (len(content), f"{google_crc32c.value(content):08x}")
    if reason is None and sums.get(name) != total:
        reason = flaw(step_directory)
        sums[name] = total
    elif reason is None:  # of a call that was killed
        reason = _flaw({other: sums[other] for other in sums if other != name}, step_directory)
    if reason is not None:
        raise UserError(f"{step_directory} is not changed: {reason}; restore a copy or remove it")
    _write(step_directory, NAME, _content(sums))
    _write(step_directory, name, content)


def flaw(step_directory: epath.Path, items: Collection[str] | None = None) -> str | None:
    """Why a sealed checkpoint is not what was saved; None if every file agrees.

    Args:
      step_directory: the folder of one step, which has a digest.
      items: check only these sub-folders (and the few files beside them); None checks all.
    """
    sums, reason = _read(step_directory)
    if reason is not None:
        return reason
    parts = ((name, name.partition("/")) for name in sums)
    wanted = {n for n, (top, _, inside) in parts if items is None or not inside or top in items}
    return _flaw({name: sums[name] for name in sums if name in wanted}, step_directory)


def _read(step_directory: epath.Path) -> tuple[dict[str, tuple[int, str]], str | None]:
    """The sums of a digest, and why they cannot be trusted."""
    try:
        record = parse_checked_json((step_directory / NAME).read_bytes())
    except DamagedError as error:
        return {}, f"{NAME} cannot be trusted: {error}"
    except OSError as error:
        return {}, f"{NAME} cannot be read ({error})"
    if record.get("digest_version") != VERSION:
        found = record.get("digest_version")
        return {}, f"{NAME} has version {found}, this program reads {VERSION}"
    return {name: (size, crc) for name, (size, crc) in record["files"].items()}, None


def _flaw(sums: Mapping[str, tuple[int, str]], step_directory: epath.Path) -> str | None:
    """Why some files are not those of a digest; None if they are."""
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
