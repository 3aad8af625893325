"""Copies remote files to a local disk and verifies their checksums.

Several processes of a host may stage into one folder. Each file has a lock file, so that one process downloads
it while the others continue with the next files. The kernel releases the locks of a process that dies.
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

from soda_jax.data.format.shards import file_crc32c
from soda_jax.data.storage.remote import RemoteFiles
from soda_jax.errors import UserError
from soda_jax.files import write_json
from soda_jax.progress import Progress, progress

_BLOCK_BYTES = 8 << 20
_LARGE_FILES = 8  # downloaded at the same time; more would only use more memory
_MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True)
class StagedFile:
    """A file to copy.

    Attributes:
      origin: path or URL of the file to copy.
      target: path of the copy.
      crc32c: checksum in the manifest, 8 hexadecimal digits.
      bytes: size of the file; None for a small file that is read in one request.
    """

    origin: str
    target: Path
    crc32c: str
    bytes: int | None = None


def stage(files: Sequence[StagedFile], remote: RemoteFiles, label: str, threads: int) -> None:
    """Copies the files that have no valid copy, in parallel; shows progress on stderr.

    The checksum of an existing copy is computed again only if its size or modification time has
    changed since it was verified.

    Raises:
      UserError: if a file is missing or damaged, the store cannot be read, or the disk is full or not
        writable. Finished copies are kept.
    """
    missing = [file for file in files if not _is_staged(file)]
    if not missing:
        return
    _check_space(missing)
    total = sum(file.bytes or 0 for file in missing) / _MEGABYTE
    threads = min(threads, _LARGE_FILES) if total else threads
    unit = "MB" if total else "files"
    with (
        progress(f"{label}, {unit}", round(total, 1) or len(missing)) as bar,
        ThreadPoolExecutor(threads, thread_name_prefix="stage") as pool,
    ):
        stager = _Stager(remote, bar, by_bytes=total > 0)
        try:
            # First copy the files that are not locked, then wait for the locks of the others.
            for wait in (False, True):
                jobs = {pool.submit(stager.stage, file, wait): file for file in missing}
                missing = [jobs[job] for job in as_completed(jobs) if not job.result()]
        finally:
            stager.stopped.set()
            pool.shutdown(cancel_futures=True)


class _Stager:
    """Copies files in several threads; setting `stopped` stops the copies in progress."""

    def __init__(self, remote: RemoteFiles, bar: Progress, by_bytes: bool):
        self._remote, self._bar, self._by_bytes = remote, bar, by_bytes
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def _advance(self, amount: float) -> None:
        with self._lock:
            self._bar.advance(amount)

    def stage(self, file: StagedFile, wait: bool) -> bool:
        """Copies a file; returns False if another process has locked it and `wait` is False."""
        try:
            file.target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(file.target, wait) as locked:
                if not locked:
                    return False
                if not _is_staged(file):
                    self._copy(file)
                elif self._by_bytes:
                    self._advance((file.bytes or 0) / _MEGABYTE)
                if not self._by_bytes:
                    self._advance(1)
                return True
        except FileNotFoundError:
            raise UserError(f"{file.origin} is missing; restore it") from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(file.target.parent) from None
            raise UserError(
                f"{file.target}: {error.strerror or error}; choose another data.cache_dir"
            ) from None

    def _copy(self, file: StagedFile) -> None:
        """Downloads a file, verifies its checksum and renames it; makes at most two attempts."""
        partial = file.target.with_name(f".{file.target.name}.partial")
        try:
            for _ in range(2):
                found = self._download(file, partial)
                if found == file.crc32c:
                    # The note is written before the rename; a note that does not match is ignored.
                    _write_note(file, partial)
                    os.replace(partial, file.target)
                    return
        finally:
            partial.unlink(missing_ok=True)
        raise UserError(
            f"{file.origin} is damaged: its crc32c is {found} in two downloads, the manifest has "
            f"{file.crc32c}; restore the file"
        )

    def _download(self, file: StagedFile, partial: Path) -> str:
        checksum = google_crc32c.Checksum()
        with open(partial, "wb") as output:
            for block in self._blocks(file):
                output.write(block)
                checksum.update(block)
                if self._by_bytes:
                    self._advance(len(block) / _MEGABYTE)
            output.flush()
            os.fsync(output.fileno())
        return checksum.digest().hex()

    def _blocks(self, file: StagedFile) -> Iterator[bytes]:
        if file.bytes is None:
            yield self._remote.read(file.origin)
            return
        for start in range(0, file.bytes, _BLOCK_BYTES):
            if self.stopped.is_set():
                raise UserError(f"{file.origin}: staging was stopped; run the command again")
            yield self._remote.read(file.origin, start, min(start + _BLOCK_BYTES, file.bytes))


def _note_path(file: StagedFile) -> Path:
    return file.target.with_name(f".{file.target.name}.staged")


def _note(file: StagedFile, path: Path) -> dict[str, str | int]:
    """Returns the contents of the note that records a verified copy at `path`."""
    status = path.stat()
    return {"crc32c": file.crc32c, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _write_note(file: StagedFile, path: Path) -> None:
    write_json(_note_path(file), _note(file, path))


def _is_staged(file: StagedFile) -> bool:
    """Returns whether a valid copy exists; reads the copy if its note is missing or outdated."""
    try:
        note = _note(file, file.target)
    except OSError:
        return False
    if file.bytes not in (None, note["bytes"]):
        return False
    with contextlib.suppress(OSError, ValueError):
        if json.loads(_note_path(file).read_text(encoding="utf-8")) == note:
            return True
    if file_crc32c(file.target)[1] != file.crc32c:
        return False
    with contextlib.suppress(OSError):  # in a read-only folder, each start verifies the copy again
        _write_note(file, file.target)
    return True


@contextlib.contextmanager
def _lock(target: Path, wait: bool) -> Iterator[bool]:
    """Locks a file for this process; yields False if `wait` is False and the file is locked."""
    with open(target.with_name(f".{target.name}.lock"), "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _check_space(files: Sequence[StagedFile]) -> None:
    """Raises UserError if the disk has too little free space for the files."""
    folder = files[0].target.parent
    while not folder.exists():
        folder = folder.parent
    needed = sum(file.bytes or 0 for file in files)
    if needed > shutil.disk_usage(folder).free:
        raise _full(folder, needed)


def _full(folder: Path, needed: int = 0) -> UserError:
    free = shutil.disk_usage(folder).free
    size = f"staging needs {needed / 1e9:.1f} GB and " if needed else ""
    return UserError(
        f"{folder}: {size}{free / 1e9:.1f} GB are free; delete files, choose another data.cache_dir, or "
        "read by byte range with data.storage=range"
    )
