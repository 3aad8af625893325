"""The data part of a config: checked, with defaults, and turned into what a source needs.

{"sequence_length": 4096, "seed": 0, "damaged": "fatal", "storage": "auto", "cache_dir": "",
 "cache_bytes": 268435456, "read_threads": 32, "retries": 8,
 "sources": {name: {"path": …, "weight": …, "order": "both", "composition": "S+A+T",
                    "codebooks": 0, "denied": "", "masked": "", "generation": -1}}}
"""

import difflib
from collections.abc import Mapping
from typing import Any

from soda_jax.data.manifest import Manifest
from soda_jax.data.source import SourceOptions
from soda_jax.data.storage.modes import STORAGES
from soda_jax.data.storage.remote import RETRIES, read_bytes
from soda_jax.errors import UserError
from soda_jax.tokens.documents import COMPOSITIONS, ORDERS, View

DEFAULTS = {
    "sequence_length": 4096,
    "seed": 0,
    "damaged": "fatal",
    # How the shards are reached; the windows, and so the digest, do not depend on it.
    "storage": "auto",
    "cache_dir": "",
    "cache_bytes": 256 << 20,
    "read_threads": 32,
    "retries": RETRIES,
    "sources": None,
}
SOURCE_DEFAULTS = {
    "path": None,
    "weight": 1.0,
    "order": "both",
    "composition": "S+A+T",
    "codebooks": 0,
    "denied": "",
    "masked": "",
    "generation": -1,
}
POLICIES = ("fatal", "mask")


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as plain dictionaries with every key present.

    Raises:
      UserError: for an unknown key (with the nearest name), a missing one, or a value out of range.
    """
    data = _filled(config, DEFAULTS, "data")
    length, seed = data["sequence_length"], data["seed"]
    if not isinstance(length, int) or length < 2:
        raise UserError(f"data.sequence_length is {length!r}; it must be an integer of 2 or more")
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"data.seed is {seed!r}; it must be an integer of 0 or more")
    if data["damaged"] not in POLICIES:
        raise UserError(f"data.damaged is {data['damaged']!r}: one of {', '.join(POLICIES)}")
    if data["storage"] not in STORAGES:
        raise UserError(f"data.storage is {data['storage']!r}: one of {', '.join(STORAGES)}")
    for key, least in (("cache_bytes", 0), ("read_threads", 1), ("retries", 0)):
        if not isinstance(data[key], int) or data[key] < least:
            raise UserError(
                f"data.{key} is {data[key]!r}; it must be an integer of {least} or more"
            )
    sources = {}
    for name in sorted(data["sources"]):
        where = f"data.sources.{name}"
        source = sources[name] = _filled(data["sources"][name], SOURCE_DEFAULTS, where)
        if source["order"] not in (*ORDERS, "both"):
            raise UserError(
                f"{where}.order is {source['order']!r}: one of {', '.join(ORDERS)}, both"
            )
        if source["composition"] not in COMPOSITIONS:
            names = ", ".join(COMPOSITIONS)
            raise UserError(f"{where}.composition is {source['composition']!r}: one of {names}")
    return {**data, "sources": sources}


def views(source: Mapping[str, Any], manifest: Manifest, name: str) -> tuple[View, ...]:
    """The views of a completed source config.

    Only S+A+T has two orders. Raises UserError where the data set has not what is to be shown.
    """
    composition, order = source["composition"], source["order"]
    if manifest.kind == "text" and composition != "text":
        raise UserError(
            f"data.sources.{name}.composition is {composition!r}, but {source['path']} holds text "
            "alone; set it to 'text'"
        )
    if composition != "S+A+T":
        orders: tuple[str, ...] = (ORDERS[0],)
    else:
        orders = ORDERS if order == "both" else (order,)
    return tuple(View(each, composition, source["codebooks"]) for each in orders)


def options(source: Mapping[str, Any], manifest: Manifest, name: str, policy: str) -> SourceOptions:
    """What `Source` needs, read from a completed source config; UserError for a bad file."""
    masked = set()
    for line in _lines(source["masked"], f"data.sources.{name}.masked"):
        if line.startswith("#"):  # the remarks of --verify
            continue
        file, _, number = line.rpartition(" ")
        if not number.isdecimal() or not file:
            raise UserError(f"{source['masked']}: {line!r} is not 'SHARD RECORD-NUMBER'")
        masked.add((file.strip(), int(number)))
    denied = frozenset(_lines(source["denied"], f"data.sources.{name}.denied"))
    return SourceOptions(views(source, manifest, name), denied, frozenset(masked), policy)


def _lines(path: str, where: str) -> list[str]:
    if not path:
        return []
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot read {path}: {error}; one entry a line, UTF-8") from None
    if "\0" in text:  # in UTF-16 no id would be found, and nothing would be left out
        raise UserError(f"{where}: {path} contains NUL, as UTF-16 does; one entry a line, UTF-8")
    # Not `splitlines`: an id may contain what Unicode counts as the end of a line.
    return [line.strip() for line in text.split("\n") if line.strip()]


def _filled(given: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key in given:
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(defaults)}"
            raise UserError(f"{where}.{key} is unknown; {hint}")
    filled = {key: given.get(key, default) for key, default in defaults.items()}
    for key, value in filled.items():
        if value is None:
            raise UserError(f"{where}.{key} is missing")
    return filled
