"""Writes and parses JSON files with a SHA-256 of their own bytes, to detect every changed byte.

The last entry of the object is `"sha256"`. The hash is computed over the bytes of the file with 64
zeros instead of the hash. Changes of whitespace or of the order of keys are therefore detected.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from soda_jax.files import write_atomic

_KEY, _ZEROS, _END = "sha256", b"0" * 64, b'"\n}\n'


class DamagedError(ValueError):
    """The bytes of a file differ from those that were written."""


def checked_json(value: Mapping[str, Any]) -> str:
    """Returns `value` as indented ASCII JSON with `sha256` as the last entry."""
    content = (json.dumps({**value, _KEY: _ZEROS.decode()}, indent=2) + "\n").encode("ascii")
    return content[: -len(_ZEROS + _END)].decode() + _digest(content) + _END.decode()


def write_checked_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Writes `checked_json(value)` atomically."""
    write_atomic(path, checked_json(value))


def parse_checked_json(content: bytes) -> dict[str, Any]:
    """Returns the JSON object in `content`, without the entry `sha256`.

    Raises:
      DamagedError: if `content` was changed or is not the output of `checked_json`.
    """
    start = max(len(content) - len(_ZEROS + _END), 0)
    stored, end = content[start : -len(_END)], content[-len(_END) :]
    if end != _END or not content[:start].endswith(f'"{_KEY}": "'.encode()):
        raise DamagedError("it is damaged or of an older format: it has no sha256 at its end")
    if stored != _digest(content[:start] + _ZEROS + end).encode():
        raise DamagedError("it is damaged: it does not match the sha256 at its end")
    value = json.loads(content)
    del value[_KEY]
    return value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
