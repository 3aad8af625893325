"""Reads files and byte ranges from `gs://`, `s3://`, `http(s)://` and `file://` with TensorStore's KvStore.

TensorStore retries a request after a connection error or a status such as 429 or 503, with exponential
backoff. It drops a connection that transfers less than 256 bytes per second for 60 seconds. It does not
retry a request that the store denies.
"""

import dataclasses
import errno
import functools
import itertools
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

from soda_jax.data.storage.locations import Location, join
from soda_jax.errors import UserError
from soda_jax.files import is_url, write_atomic

# About 90 seconds of backoff in total; a run uses `data.read_retries` instead.
RETRIES = 8
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
_CONCURRENCY = 32
_DRIVERS = ("gcs", "s3", "http")
_SLOW_SECONDS = 10.0  # a read that takes longer is logged
_EXHAUSTED = re.compile(r"All (\d+) retry attempts failed: (.*)")
_LONGEST_REASON = 240  # characters; some stores answer with a page of HTML
_LOG = logging.getLogger(__name__)
_slow_reads = itertools.count(1)


class StoreError(UserError):
    """A store refused a read, or every attempt to read from it failed."""


class ShortReadError(StoreError):
    """A file in a store ends before the requested bytes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Read:
    """A read that has been started.

    Attributes:
      future: TensorStore's future of the result.
      what: file and byte range, for error messages.
    """

    future: Any
    what: str

    def result(self) -> bytes:
        """Waits for the bytes; the first slow read is logged, then the tenth, hundredth and so on.

        Raises:
          FileNotFoundError: if there is no such file.
          ShortReadError: if the file ends before the last byte of the range.
          StoreError: if the store refused the read or every attempt failed.

        Do not call this in a daemon thread: if the interpreter exits during the wait, TensorStore
        aborts the process.
        """
        try:
            found = self._wait()
        except Exception as error:
            raise _store_error(error, self.what) from None
        if found.state == "missing":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.what)
        return found.value

    def _wait(self) -> Any:
        try:
            return self.future.result(timeout=_SLOW_SECONDS)
        except TimeoutError:
            count = str(next(_slow_reads))
            if count.strip("0") == "1":
                _LOG.warning(
                    "%s: no answer in %.0f s, still trying; slow reads so far: %s",
                    self.what,
                    _SLOW_SECONDS,
                    count,
                )
        return self.future.result()


class RemoteFiles:
    """Reads remote files; thread-safe."""

    def __init__(self, retries: int = RETRIES, concurrency: int = _CONCURRENCY):
        """Stores the settings; connections are opened by the first read.

        Args:
          retries: maximum retries of a failed request.
          concurrency: maximum concurrent requests for each TensorStore driver.
        """
        self._retries, self._concurrency = retries, concurrency
        self._context: Any = None
        self._folders: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._repeated_before = 0

    @property
    def repeated_reads(self) -> int:
        """Number of retries in this process since the first read through this object.

        TensorStore counts the retries of `gs://` and `s3://` requests in the whole process,
        including those for checkpoints.
        """
        return _count_repeats() - self._repeated_before if self._context is not None else 0

    def start(self, location: Location, start: int = 0, stop: int | None = None) -> Read:
        """Starts reading bytes [start, stop) of a file; by default the whole file.

        Raises:
          UserError: if the URL is invalid or its scheme is not supported.
        """
        folder, _, name = _as_url(location).rpartition("/")
        future = self._open(f"{folder}/").read(name, byte_range=slice(start, stop))
        what = str(location) if stop is None else f"{location}, bytes {start} to {stop}"
        return Read(future, what)

    def read(self, location: Location, start: int = 0, stop: int | None = None) -> bytes:
        """Calls `start` and returns the bytes; raises the errors of `start` and `Read.result`."""
        return self.start(location, start, stop).result()

    def list_files(self, folder: Location) -> list[str]:
        """Returns the paths of the files in a folder, relative to it, in alphabetical order.

        Web servers cannot list a folder: for `http(s)://` the result is empty and a warning is logged.

        Raises:
          UserError: if the URL is invalid, its scheme is not supported, or the store cannot be read.
        """
        url = _as_url(folder).rstrip("/")
        try:
            return sorted(name.decode() for name in self._open(f"{url}/").list().result())
        except NotImplementedError:
            _LOG.warning(
                "%s: http(s):// does not list folders; copy this folder by hand if the run needs it",
                folder,
            )
            return []
        except ValueError as error:
            raise _store_error(error, str(folder)) from None

    def _open(self, folder: str) -> Any:
        """Returns the KvStore of a folder; `folder` must be a URL that ends with a slash."""
        import tensorstore as ts

        with self._lock:
            if self._context is None:
                self._context = ts.Context(self._settings())
                self._repeated_before = _count_repeats()
            if folder not in self._folders:
                try:
                    opened = ts.KvStore.open(folder, context=self._context).result()
                except ValueError as error:
                    raise UserError(
                        f"{folder}: {_one_line(error)}; use gs://, s3://, http(s):// or file://, or "
                        "mount the store and pass the path of the mount"
                    ) from None
                self._folders[folder] = opened
            return self._folders[folder]

    def _settings(self) -> dict[str, Any]:
        """Returns the settings of TensorStore's context, which all folders share."""
        limit = {"limit": self._concurrency}
        retries = {
            "max_retries": self._retries,
            "initial_delay": f"{_FIRST_WAIT_SECONDS * 1000:.0f}ms",
            "max_delay": f"{_LONGEST_WAIT_SECONDS * 1000:.0f}ms",
        }
        settings: dict[str, Any] = {"file_io_concurrency": limit}
        for driver in _DRIVERS:
            settings[f"{driver}_request_concurrency"] = limit
            settings[f"{driver}_request_retries"] = retries
        return settings


@functools.cache
def shared() -> RemoteFiles:
    """Returns the reader that all functions for manifests and other small files share."""
    return RemoteFiles()


def read_bytes(location: Location) -> bytes:
    """Reads a small file, local or remote.

    Raises:
      OSError: if a local file cannot be read, or a local or remote file does not exist.
      UserError: if the URL is invalid or the store cannot be read.
    """
    return shared().read(location) if is_url(location) else Path(location).read_bytes()


def download_folder(folder: Location, target: Path) -> bool:
    """Copies the files of a remote folder into `target`; returns False if there are none.

    Raises:
      UserError: if the store cannot be read, or the path of a file contains "..".
    """
    names = shared().list_files(folder)
    for name in names:
        if ".." in name.split("/"):
            raise UserError(f"{join(folder, name)}: its name contains '..'; remove it")
        write_atomic(target / name, shared().read(join(folder, name)))
    return bool(names)


def _as_url(location: Location) -> str:
    return str(location) if is_url(location) else Path(location).absolute().as_uri()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST_REASON]


def _store_error(error: Exception, what: str) -> StoreError:
    """Converts TensorStore's exception, a ValueError whose message starts with the status code."""
    reason = _one_line(error) or type(error).__name__
    if reason.startswith("OUT_OF_RANGE"):
        return ShortReadError(f"{what}: the file is too short ({reason})")
    if exhausted := _EXHAUSTED.search(reason):
        return StoreError(
            f"{what}: cannot be read: {int(exhausted[1]) + 1} attempts failed, the last with "
            f"{exhausted[2]}; check the connection to the store, or raise data.read_retries"
        )
    return StoreError(f"{what}: {reason}; check the URL and that this host may read it")


def _count_repeats() -> int:
    """Returns the number of retries that TensorStore has counted in this process."""
    import tensorstore as ts

    metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    return sum(
        value["value"]
        for metric in metrics
        if metric["name"].endswith("/retries")
        for value in metric["values"]
    )
