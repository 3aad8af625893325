"""The seal of a checkpoint: size and crc32c of every file, written after the commit.

Orbax does not notice a flipped bit in array data; this file does (invariant 8 of the design).
The sums are read back from the store right after the commit, so they catch what happens to a
checkpoint at rest, not an error between memory and that first reading.
"""

import json
import os
from collections.abc import Collection

import google_crc32c
from etils import epath

NAME = "digest.json"
VERSION = 1
# How long the others wait for process 0, which reads whole checkpoints.
SECONDS = 4 * 3600.0
_CHUNK_BYTES = 8 << 20


def checksum(path: epath.Path) -> tuple[int, str]:
    """Size in bytes and crc32c (8 hex digits) of a file."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            size += len(chunk)
            crc = google_crc32c.extend(crc, chunk)
    return size, f"{crc:08x}"


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
    sums = {name: checksum(path) for name, path in _files(step_directory).items()}
    content = json.dumps({"digest_version": VERSION, "files": sums}, indent=1) + "\n"
    if "://" in os.fspath(step_directory):
        # An object store has no rename, and needs none: an object appears when it is whole.
        (step_directory / NAME).write_text(content)
        return
    temporary = step_directory / f".{NAME}.tmp"
    temporary.write_text(content)
    temporary.replace(step_directory / NAME)


def is_sealed(step_directory: epath.Path) -> bool:
    """True if the checkpoint has a digest file, whatever it says."""
    return (step_directory / NAME).exists()


def flaw(step_directory: epath.Path, items: Collection[str] | None = None) -> str | None:
    """Why a sealed checkpoint is not what was saved; None if every file agrees.

    Args:
      step_directory: the folder of one step, which has a digest.
      items: check only these sub-folders (and the few files beside them); None checks all.
    """
    try:
        record = json.loads((step_directory / NAME).read_text())
        sums = {str(name): (int(size), str(crc)) for name, (size, crc) in record["files"].items()}
        version = record["digest_version"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{NAME} cannot be read ({error})"
    if version != VERSION:
        return f"{NAME} has version {version}, this program reads {VERSION}"
    for name, (size, crc) in sums.items():
        top, _, inside = name.partition("/")
        if items is not None and inside and top not in items:
            continue
        try:
            found_size, found_crc = checksum(step_directory / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error})"
        if found_size != size:
            return f"{name} has {found_size:,} bytes, {size:,} were saved"
        if found_crc != crc:
            return f"{name} is damaged: crc32c {found_crc}, {crc} was saved"
    return None
