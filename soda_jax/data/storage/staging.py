"""Copies of remote files on a local disk, each whole, with its checksum compared.

Several processes of a host may stage into one folder: a lock file for each file lets one of them fetch
it while the others take the next. The kernel releases the lock of a process that dies.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import google_crc32c

from soda_jax.data.shards import file_crc32c
from soda_jax.data.storage.remote import RemoteFiles
from soda_jax.errors import UserError
from soda_jax.files import write_json
from soda_jax.progress import Progress, progress

_BLOCK_BYTES = 8 << 20
_LARGE_AT_A_TIME = 8  # files that are fetched in blocks: more of them only take memory
_MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True)
class Copy:
    """A file to be staged.

    Attributes:
      origin: where it is.
      target: where the copy goes.
      crc32c: what the manifest says of it, 8 hexadecimal digits.
      bytes: its size; None for a small file that is fetched in one read.
    """

    origin: str
    target: Path
    crc32c: str
    bytes: int | None = None


def stage(copies: Sequence[Copy], remote: RemoteFiles, label: str, threads: int) -> None:
    """Fetches what is not there yet, in parallel, with progress and the time left on stderr.

    A copy that was checked once is checked again only if its size or time of change is another.

    Raises:
      UserError: if a file is missing or never has the checksum of the manifest, the store cannot be
        read, or the disk is full or not writable. What was staged before stays.
    """
    wanted = [copy for copy in copies if not _is_staged(copy)]
    if not wanted:
        return
    _check_space(wanted)
    total = sum(copy.bytes or 0 for copy in wanted) / _MEGABYTE
    threads = min(threads, _LARGE_AT_A_TIME) if total else threads
    unit = "MB" if total else "files"
    with (
        progress(f"{label}, {unit}", round(total, 1) or len(wanted)) as bar,
        ThreadPoolExecutor(threads, thread_name_prefix="stage") as pool,
    ):
        work = _Staging(remote, bar, by_bytes=total > 0)
        try:
            # First what no other process is at, then what they have left undone.
            for wait in (False, True):
                jobs = {pool.submit(work.stage, copy, wait): copy for copy in wanted}
                wanted = [jobs[job] for job in as_completed(jobs) if not job.result()]
        finally:
            work.stopped.set()
            pool.shutdown(cancel_futures=True)


class _Staging:
    """What the threads share; `stopped` ends those that are in the middle of a file."""

    def __init__(self, remote: RemoteFiles, bar: Progress, by_bytes: bool):
        self._remote, self._bar, self._by_bytes = remote, bar, by_bytes
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def _advance(self, amount: float) -> None:
        with self._lock:
            self._bar.advance(amount)

    def stage(self, copy: Copy, wait: bool) -> bool:
        """Stages a file; False if another process is at it and `wait` is False."""
        try:
            copy.target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(copy.target, wait) as held:
                if not held:
                    return False
                if not _is_staged(copy):
                    self._fetch(copy)
                elif self._by_bytes:
                    self._advance((copy.bytes or 0) / _MEGABYTE)
                if not self._by_bytes:
                    self._advance(1)
                return True
        except FileNotFoundError:
            raise UserError(f"{copy.origin} is missing; restore it") from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(copy.target.parent) from None
            raise UserError(
                f"{copy.target}: {error.strerror or error}; choose another data.cache_dir"
            ) from None

    def _fetch(self, copy: Copy) -> None:
        """Fetches, compares, renames. A file whose checksum is wrong is fetched a second time."""
        partial = copy.target.with_name(f".{copy.target.name}.partial")
        try:
            for _ in range(2):
                found = self._download(copy, partial)
                if found == copy.crc32c:
                    # The note first: without its file, or beside an older one, it says nothing.
                    _write_note(copy, partial)
                    os.replace(partial, copy.target)
                    return
        finally:
            partial.unlink(missing_ok=True)
        raise UserError(
            f"{copy.origin} is damaged: its crc32c is {found} at two attempts, the manifest says "
            f"{copy.crc32c}; restore the file"
        )

    def _download(self, copy: Copy, partial: Path) -> str:
        checksum = google_crc32c.Checksum()
        with open(partial, "wb") as file:
            for block in self._blocks(copy):
                file.write(block)
                checksum.update(block)
                if self._by_bytes:
                    self._advance(len(block) / _MEGABYTE)
            file.flush()
            os.fsync(file.fileno())
        return checksum.digest().hex()

    def _blocks(self, copy: Copy) -> Iterator[bytes]:
        if copy.bytes is None:
            yield self._remote.read_whole(copy.origin)
            return
        for start in range(0, copy.bytes, _BLOCK_BYTES):
            if self.stopped.is_set():
                raise UserError(f"{copy.origin}: staging was stopped; start again to go on")
            yield self._remote.read(copy.origin, start, min(start + _BLOCK_BYTES, copy.bytes))


def _note_path(copy: Copy) -> Path:
    return copy.target.with_name(f".{copy.target.name}.staged")


def _write_note(copy: Copy, file: Path) -> None:
    status = file.stat()
    note = {"crc32c": copy.crc32c, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    write_json(_note_path(copy), note)


def _is_staged(copy: Copy) -> bool:
    """Whether the copy is there and is what the manifest says, read only if its note does not tell."""
    try:
        status = copy.target.stat()
    except OSError:
        return False
    if copy.bytes not in (None, status.st_size):
        return False
    try:
        note = json.loads(_note_path(copy).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        note = None
    known = {"crc32c": copy.crc32c, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    if note == known:
        return True
    if file_crc32c(copy.target)[1] != copy.crc32c:
        return False
    with contextlib.suppress(OSError):  # somebody else's folder: it is read again next time
        _write_note(copy, copy.target)
    return True


@contextlib.contextmanager
def _lock(target: Path, wait: bool) -> Iterator[bool]:
    with open(target.with_name(f".{target.name}.lock"), "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _check_space(copies: Sequence[Copy]) -> None:
    """One error at once instead of a full disk after an hour."""
    folder = copies[0].target.parent
    while not folder.exists():
        folder = folder.parent
    needed = sum(copy.bytes or 0 for copy in copies)
    if needed > shutil.disk_usage(folder).free:
        raise _full(folder, needed)


def _full(folder: Path, needed: int = 0) -> UserError:
    free = shutil.disk_usage(folder).free
    what = f"{needed / 1e9:.1f} GB are to be staged, " if needed else ""
    return UserError(
        f"{folder}: {what}{free / 1e9:.1f} GB are free; make room, choose another data.cache_dir, or "
        "read by byte range with data.storage=range"
    )
