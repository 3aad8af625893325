"""What the folders of all codecs have in common: `codec.json`, and the fingerprint in it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from soda_jax.errors import UserError

Parsed = TypeVar("Parsed")


def fingerprint(settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """Digest of settings (JSON) and tensors (taken as f32, in the order of their names), 32 hex digits."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name], "<f4").data)
    return digest.hexdigest()[:32]


def read_description(
    path: Path, codec: str, version: int, mend: str, parse: Callable[[dict[str, Any]], Parsed]
) -> Parsed:
    """What `parse` makes of `codec.json`.

    Args:
      path: the file.
      codec: the name that it must have.
      version: the format version that it must have.
      mend: what to do about another file, such as "run `soda codec fit`".
      parse: may raise ValueError, KeyError, TypeError or AttributeError for what it cannot use.

    Raises:
      UserError: naming the file, what is wrong and the mend.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        found, name = value["format_version"], value["name"]
        if name != codec:
            raise UserError(f"{path} is of a {name!r} codec: write {name}:DIR")
        if found != version:
            raise UserError(
                f"{path} has format version {found}, this program reads {version}: {mend} again or "
                "use the matching release"
            )
        return parse(value)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {mend}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not describe a {codec} codec ({error}): {mend}") from None
