"""Folders and files that are named by a path or by a URL.

A URL is anything with `://` in it, `gs://bucket/data` for example; fsspec knows how to reach it. It is
kept as text: `pathlib` would make one slash of two.
"""

import os
from pathlib import Path

from soda_jax.errors import UserError

Location = str | os.PathLike[str]


def is_url(location: Location) -> bool:
    """Whether a location is a URL and not a path of this machine."""
    return "://" in os.fspath(location)


def refuse_url(location: Location, what: str) -> None:
    """UserError if a location is a URL; `what` begins the sentence: "soda tokenize writes"."""
    if is_url(location):
        raise UserError(
            f"{location} is a URL: {what} a folder of this machine; name one, or mount it"
        )


def join(location: Location, *names: str) -> str:
    """The location of something below a folder."""
    if is_url(location):
        return "/".join([os.fspath(location).rstrip("/"), *names])
    return os.path.join(location, *names)


def absolute(location: Location) -> str:
    """A path that holds from any folder; a URL is one already."""
    return os.fspath(location) if is_url(location) else os.path.abspath(location)


def cache_folder(cache_dir: str, location: Location) -> Path:
    """The folder below `cache_dir` for the copies of what lies below `location`."""
    scheme, _, rest = absolute(location).partition("://")
    parts = [scheme, *rest.split("/")] if rest else ["local", *scheme.split("/")]
    # No part may lead out of the folder.
    return Path(cache_dir, *(part for part in parts if part.strip(".")))


def default_cache_dir() -> str:
    """Where small copies (the indexes of remote shards) go if the config names no folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return os.path.join(base, "soda_jax", "data")
