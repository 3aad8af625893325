"""Reads and writes what the folders of all codecs have in common: `codec.json` and safetensors files."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from soda_jax.errors import UserError
from soda_jax.files import write_json

FILE = "codec.json"
Parsed = TypeVar("Parsed")


def fingerprint(settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """Returns 32 hex digits that identify settings (as JSON) and tensors (as f32, sorted by name)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name], "<f4").data)
    return digest.hexdigest()[:32]


def write_description(folder: Path, version: int, codec: Any, **settings: Any) -> None:
    """Writes `codec.json` with the name and the fingerprint of `codec`, and its settings."""
    head = {"format_version": version, "name": codec.name, "fingerprint": codec.fingerprint}
    write_json(folder / FILE, {**head, **settings})


def read_description(
    folder: Path, codec: str, version: int, fix: str, parse: Callable[[dict[str, Any]], Parsed]
) -> Parsed:
    """Reads `codec.json` and returns what `parse` makes of it.

    Args:
      folder: the codec's folder.
      codec: the name that the file must contain.
      version: the format version that the file must contain.
      fix: what the user should do if the file is wrong, such as "run `soda codec fit`".
      parse: may raise ValueError, KeyError, TypeError or AttributeError for invalid content.

    Raises:
      UserError: with the file, the problem and `fix`.
    """
    path = folder / FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        found, name = value["format_version"], value["name"]
        if name != codec:
            raise UserError(f"{path} is of a {name!r} codec: write {name}:DIR")
        if found != version:
            raise UserError(
                f"{path} has format version {found}, this program reads {version}: {fix} again or "
                "use the matching release"
            )
        return parse(value)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {fix}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not describe a {codec} codec ({error}): {fix}") from None


def read_tensors(path: Path, fix: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file by name.

    Raises:
      UserError: if the file is missing or damaged, with `fix` as in `read_description`.
    """
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {fix}") from None
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a safetensors file ({error}): {fix}") from None
