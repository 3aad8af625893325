"""Reading files that lie elsewhere, with patience: retries, then one clear error."""

import errno
import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from soda_jax.data.storage.locations import Location, is_url, join
from soda_jax.errors import UserError
from soda_jax.files import write_atomic

RETRIES = 8  # one and a half minutes of waiting in all
_LOG = logging.getLogger(__name__)
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
# A read that hangs longer has failed. Only asynchronous file systems (gcsfs) can be told so.
_TIMEOUT_SECONDS = 60.0
# The store has answered, and will answer the same again.
_REFUSED = (PermissionError, IsADirectoryError, NotADirectoryError, ImportError)
T = TypeVar("T")


class StoreError(UserError):
    """A store could not be read although it was asked several times."""


class ShortReadError(StoreError):
    """A file in a store is shorter than it should be."""


class _ShortError(OSError):
    """Fewer bytes came than were asked for."""


class RemoteFiles:
    """Reads byte ranges and whole files of any file system that fsspec knows; threads may share it.

    A read that fails for any reason but a missing file or permission is repeated after a wait that
    doubles from half a second to half a minute, give or take a half. The first failure is logged, and the
    tenth, hundredth and so on with the count.

    Attributes:
      failures: number of reads that failed and were repeated.
    """

    def __init__(self, retries: int = RETRIES):
        """Args: retries: how often a failed read is repeated."""
        self._retries = retries
        self._systems: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.failures = 0

    def read(self, location: Location, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, all of them.

        Raises:
          FileNotFoundError: if there is no such file; it is not asked for again.
          ShortReadError: if the file ends before `stop`, or fewer bytes come at every attempt.
          StoreError: if every attempt failed otherwise.
        """

        def once() -> bytes:
            try:
                data = self._call("cat_file", location, start=start, end=stop)
                if len(data) != stop - start:
                    raise _ShortError(f"{len(data)} of {stop - start} bytes came")
                return data
            except Exception:
                # Some stores give what there is, others refuse; each has its own error for that.
                size = self._size(location)
                if size is not None and size < stop:
                    raise ShortReadError(
                        f"{location}: bytes {start} to {stop} are wanted and it has {size}"
                    ) from None
                raise

        return self._patiently(f"{location}, bytes {start} to {stop}", once)

    def read_whole(self, location: Location) -> bytes:
        """All bytes of a file; raises as `read` does."""
        return self._patiently(str(location), lambda: self._call("cat_file", location))

    def files_below(self, folder: Location) -> dict[str, str]:
        """Location of each file below a folder by its name relative to it; empty if there is none."""
        root = self._system(folder)[1].rstrip("/")
        try:
            found = self._patiently(str(folder), lambda: self._call("find", folder))
        except FileNotFoundError:
            return {}
        names = [path.removeprefix(root).lstrip("/") for path in sorted(found)]
        return {name: join(folder, name) for name in names if name}

    def _size(self, location: Location) -> int | None:
        """Bytes of a file, None if the store does not tell at the first attempt."""
        try:
            return self._call("info", location).get("size")
        except Exception:  # the read has failed already, and that error is told
            return None

    def _system(self, location: Location) -> tuple[Any, str]:
        """The file system of a location and the path there."""
        import fsspec

        url = str(location) if is_url(location) else f"file://{Path(location).absolute()}"
        scheme, _, rest = url.partition("://")
        store = f"{scheme}://{rest.partition('/')[0]}"
        try:
            with self._lock:  # fsspec would make one for each thread
                if store not in self._systems:
                    self._systems[store] = fsspec.core.url_to_fs(url)[0]
                system = self._systems[store]
            return system, system._strip_protocol(url)
        except ImportError as error:
            hint = "pip install 'soda-jax[gcs]'" if scheme in ("gs", "gcs") else str(error)
            raise UserError(
                f"{url}: {scheme}:// needs a package that is not here: {hint}"
            ) from None
        except ValueError as error:
            raise UserError(f"{url}: {error}; name a path, gs://… or what fsspec knows") from None

    def _call(self, method: str, location: Location, **arguments: Any) -> Any:
        system, path = self._system(location)
        if getattr(system, "async_impl", False):
            arguments["timeout"] = _TIMEOUT_SECONDS
        return getattr(system, method)(path, **arguments)

    def _patiently(self, what: str, work: Callable[[], T]) -> T:
        for attempt in range(self._retries + 1):
            try:
                return work()
            except (UserError, FileNotFoundError):
                raise
            except _REFUSED as error:
                raise StoreError(
                    f"{what}: {type(error).__name__}: {error}; see that this host may read it"
                ) from None
            # Each store has exceptions of its own for what passes: those of aiohttp are no OSError.
            except Exception as error:
                told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                if attempt == self._retries:
                    kind = ShortReadError if isinstance(error, _ShortError) else StoreError
                    raise kind(
                        f"{what}: cannot be read, {attempt + 1} attempts failed, the last with "
                        f"{told}; see that the store can be reached and the file is whole, or raise "
                        "data.retries"
                    ) from None
                self._note(what, told)
                wait = min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS)
                time.sleep(wait * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    def _note(self, what: str, told: str) -> None:
        with self._lock:
            self.failures += 1
            count = self.failures
        if str(count).strip("0") == "1":
            failed = "a read" if count == 1 else f"{count} reads so far"
            _LOG.warning("%s: %s; %s failed and will be repeated", what, told, failed)


@functools.cache
def shared() -> RemoteFiles:
    """The one used for manifests and other small files."""
    return RemoteFiles()


def read_bytes(location: Location) -> bytes:
    """All bytes of a small file, local or remote.

    Raises:
      OSError: if it cannot be read here or there is none.
      UserError: if a store does not give it.
    """
    if is_url(location):
        try:
            return shared().read_whole(location)
        except FileNotFoundError:  # fsspec's have a message alone
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
    return Path(location).read_bytes()


def download_folder(folder: Location, target: Path) -> bool:
    """Copies what lies below a remote folder into `target`; False if there is nothing.

    Raises:
      UserError: if the store cannot be read.
    """
    found = shared().files_below(folder)
    for name, location in found.items():
        if ".." in name.split("/"):
            raise UserError(f"{location}: such a name would lead out of the folder; remove it")
        write_atomic(target / name, shared().read_whole(location))
    return bool(found)
