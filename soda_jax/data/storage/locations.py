"""Locations of folders and files: local paths, and URLs such as `gs://bucket/data`.

A location that contains `://` is a URL. URLs are kept as strings, because `pathlib` would turn `//` into
`/`.
"""

import os
from pathlib import Path

from soda_jax.errors import UserError
from soda_jax.files import is_url

Location = str | os.PathLike[str]


def refuse_url(location: Location, what: str) -> None:
    """Raises UserError if a location is a URL; an example of `what` is "soda tokenize writes"."""
    if is_url(location):
        raise UserError(
            f"{location} is a URL: {what} a local folder; pass a path, or mount the store and pass "
            "the path of the mount"
        )


def join(location: Location, *names: str) -> str:
    """Returns the location of an entry of a folder; `names` are the parts of its relative path."""
    if is_url(location):
        return "/".join([os.fspath(location).rstrip("/"), *names])
    return os.path.join(location, *names)


def absolute(location: Location) -> str:
    """Returns the absolute path of a local location, and a URL unchanged."""
    return os.fspath(location) if is_url(location) else os.path.abspath(location)


def cache_folder(cache_dir: str, location: Location) -> Path:
    """Returns the folder in `cache_dir` for local copies of the files in `location`."""
    scheme, _, rest = absolute(location).partition("://")
    parts = [scheme, *rest.split("/")] if rest else ["local", *scheme.split("/")]
    # "." and ".." are dropped, so that the result is always inside `cache_dir`.
    return Path(cache_dir, *(part for part in parts if part.strip(".")))


def default_cache_dir() -> str:
    """Returns the folder for the indexes of remote shards when `data.cache_dir` is not set."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return os.path.join(base, "soda_jax", "data")
