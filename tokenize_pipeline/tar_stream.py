"""Reads the files of a tar in order, plain or compressed with gzip.

In a plain archive, unread data is skipped by seeking. A compressed archive is one stream: reading a
file before the current position decompresses it again from the beginning.

The checksum of a compressed archive is at its end. Files in damaged data may look intact, so the
files are verified only after `next` has returned None, not if the caller stops earlier.
"""

import gzip
import tarfile
import zlib
from typing import Any, BinaryIO, NamedTuple, cast

from tokenize_pipeline.quarantine import BadInputError

COMPRESSED = (".tar.gz", ".tgz")
LARGEST_MEMBER = 2**31 - 2**16  # bytes of a sound, within the limit of one `read` call
# Exceptions of tarfile, gzip and zlib for damaged bytes.
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError)
_BLOCK = 512
_TAIL_BYTES = 2**20  # bytes per read after the end-of-archive block


class ChecksumError(BadInputError):
    """Raised if all files of a compressed archive were read, but its checksum does not match."""


class Member(NamedTuple):
    """A regular file in a tar: name without a leading "./", offset of its data, size in bytes."""

    name: str
    offset: int
    size: int


def member_name(name: str) -> str:
    """Returns the name without a leading "./"."""
    return name.removeprefix("./")


def is_compressed(path: str) -> bool:
    """Returns whether the archive is compressed and can only be read from the beginning."""
    return path.lower().endswith(COMPRESSED)


class TarStream:
    """Iterates over the files of one tar: `next`, then `read` if the content is needed.

    Raises (all methods):
      BadInputError: `missing`, `truncated` or `undecodable`, with the path of the archive. After
        this error, no more files can be read.
    """

    def __init__(self, path: str):
        """Opens the archive at `path`."""
        self._path = path
        try:
            opened = (gzip.open if is_compressed(path) else open)(path, "rb")
            self._file = _LastReadFile(cast(BinaryIO, opened))
        except FileNotFoundError:
            raise BadInputError("missing", f"{path}: no such archive") from None
        except OSError as error:
            cause = error.strerror or type(error).__name__
            message = f"{path}: the archive cannot be read ({cause})"
            raise BadInputError("undecodable", message) from None
        self._tar: Any = None
        self._offset = -1

    def next(self) -> Member | None:
        """Returns the next regular file; None at the end, if the checksum is correct.

        Raises:
          ChecksumError: if a compressed archive has an end-of-archive block, but its checksum is
            wrong or unreadable; any of the earlier files may be damaged.
        """
        while (info := self._next_header()) is not None:
            if info.isreg() and not info.issparse():
                return Member(member_name(info.name), info.offset_data, info.size)
        return None

    def read(self, member: Member) -> bytes:
        """Returns the content of a file that `next` returned."""
        try:
            self._file.seek(member.offset)
            content = self._file.read(member.size)
        except _DAMAGE as error:
            raise self._damaged(error) from None
        if len(content) < member.size:
            raise BadInputError("truncated", f"{self._path}: the archive ends within {member.name}")
        return content

    def close(self) -> None:
        """Closes the archive."""
        self._file.close()

    def _next_header(self) -> tarfile.TarInfo | None:
        try:
            if self._tar is None:
                # Mode "r|gz" neither detects truncated streams nor reports positions.
                self._tar = tarfile.TarFile(fileobj=cast(BinaryIO, self._file))
            info = self._tar.next()
        except _DAMAGE as error:
            raise self._damaged(error) from None
        self._tar.members.clear()  # otherwise tarfile keeps every header in memory
        if info is None:
            self._check_end()
        elif info.size < 0 or self._tar.offset <= self._offset:
            raise BadInputError("undecodable", f"{self._path}: a header has a wrong size or offset")
        self._offset = self._tar.offset
        return info

    def _check_end(self) -> None:
        """Verifies the end-of-archive block and checksum; tarfile also stops at damaged headers."""
        last = self._file.last
        if len(last) < _BLOCK:
            raise BadInputError(
                "truncated", f"{self._path}: the archive has no end-of-archive block"
            )
        if any(last):
            raise BadInputError("undecodable", f"{self._path}: a header of the archive is damaged")
        if not is_compressed(self._path):
            return
        try:  # gzip verifies checksum and length at the end
            while self._file.read(_TAIL_BYTES):
                pass
        except _DAMAGE as error:
            reason = "truncated" if isinstance(error, EOFError) else "undecodable"
            message = f"the end of the archive is damaged, its files may be wrong ({error})"
            raise ChecksumError(reason, f"{self._path}: {message}") from None

    def _damaged(self, error: Exception) -> BadInputError:
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        # tarfile raises the same error for wrong and for truncated headers.
        cut = isinstance(error, tarfile.TarError) and len(self._file.last) < _BLOCK
        reason = "truncated" if cut or isinstance(error, EOFError) else "undecodable"
        message = f"{self._path}: the rest of the archive cannot be read ({cause})"
        return BadInputError(reason, message)


class _LastReadFile:
    """A binary file with the methods that tarfile needs, and the bytes that were read last."""

    def __init__(self, file: BinaryIO):
        self._file, self.last = file, b""
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int) -> bytes:
        # The size in a damaged header may be any number, so it must not be allocated.
        self.last = self._file.read(min(size, LARGEST_MEMBER))
        return self.last
