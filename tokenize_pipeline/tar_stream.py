"""The files of a tar, plain or compressed with gzip, met one after the other.

Only forward: a compressed archive is one stream. Of a plain one the data that nobody reads is jumped
over, so that its headers cost little.

The checksum of a compressed archive stands at its very end. A byte that was changed on the way may give
files that look whole, so they are known to be right only once `next` has said that there are no more. Who
stops before that, having found all that was wanted, learns nothing of it.
"""

import gzip
import os
import tarfile
import zlib
from typing import Any, BinaryIO, NamedTuple, cast

from tokenize_pipeline.quarantine import BadInputError

COMPRESSED = (".tar.gz", ".tgz")
LARGEST_MEMBER = 2**31 - 2**16  # bytes of a sound; the most that one system call reads, and enough
# What tarfile, gzip and zlib raise when they read damaged bytes.
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError)
_BLOCK = 512
_READ_ON = 2**20  # bytes at a time from the end mark to the checksum


class UnsoundError(BadInputError):
    """All files of a compressed archive were met, and its end shows that not all can be right."""


class Member(NamedTuple):
    """A regular file in a tar: its name without a leading "./", where its data begins, its size."""

    name: str
    offset: int
    size: int


def member_name(name: str) -> str:
    """The name as it is compared: a leading "./" is dropped."""
    return name.removeprefix("./")


def is_compressed(path: str) -> bool:
    """Whether the archive can only be read from its beginning."""
    return path.lower().endswith(COMPRESSED)


class TarStream:
    """Goes through one tar; `next` and then, if it is wanted, `read`.

    Raises (all methods):
      BadInputError: `missing`, `truncated` or `undecodable`, naming the archive. What was met before is
        sound; nothing more can be read.
    """

    def __init__(self, path: str):
        """Opens the archive at `path`."""
        self._path = path
        try:
            opened = (gzip.open if is_compressed(path) else open)(path, "rb")
            self._file = _Remembering(cast(BinaryIO, opened))
        except FileNotFoundError:
            raise BadInputError("missing", f"{path}: there is no such archive") from None
        except OSError as error:
            cause = error.strerror or type(error).__name__
            raise BadInputError(
                "undecodable", f"{path}: the archive cannot be read ({cause})"
            ) from None
        self._tar: Any = None
        self._offset = -1

    def next(self) -> Member | None:
        """The next regular file; None where the archive ends as it should, its checksum included.

        Raises:
          UnsoundError: a compressed archive has its end mark, but its checksum is wrong or cannot be
            read: any of the files given before may be damaged.
        """
        while True:
            info = self._next_header()
            if info is None or (info.isreg() and not info.issparse()):
                break
        if info is None:
            return None
        return Member(member_name(info.name), info.offset_data, info.size)

    def read(self, member: Member) -> bytes:
        """The content of the file that `next` gave last."""
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
                # Not mode "r|gz": that neither notices a cut stream nor tells where it stands.
                self._tar = tarfile.TarFile(fileobj=cast(BinaryIO, self._file))
            info = self._tar.next()
        except _DAMAGE as error:
            raise self._damaged(error) from None
        self._tar.members.clear()  # it keeps every header otherwise
        if info is None:
            self._check_end()
        elif info.size < 0 or self._tar.offset <= self._offset:
            raise BadInputError("undecodable", f"{self._path}: a header leads backwards")
        self._offset = self._tar.offset
        return info

    def _check_end(self) -> None:
        """tarfile takes a damaged header for the end; a whole archive ends with a block of zeros."""
        last = self._file.last
        if len(last) < _BLOCK:
            raise BadInputError("truncated", f"{self._path}: the archive ends without its end mark")
        if any(last):
            raise BadInputError("undecodable", f"{self._path}: a header of the archive is damaged")
        if is_compressed(self._path):
            self._check_sum()

    def _check_sum(self) -> None:
        """Reads on to where gzip compares checksum and length, which is behind the last byte."""
        try:
            while self._file.read(_READ_ON):
                pass
        except _DAMAGE as error:
            reason = "truncated" if isinstance(error, EOFError) else "undecodable"
            raise UnsoundError(
                reason,
                f"{self._path}: the archive has no sound end, its files may be wrong ({error})",
            ) from None

    def _damaged(self, error: Exception) -> BadInputError:
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        # tarfile has one kind of error for headers that are wrong and for those that are cut off.
        cut = isinstance(error, tarfile.TarError) and len(self._file.last) < _BLOCK
        reason = "truncated" if cut or isinstance(error, EOFError) else "undecodable"
        return BadInputError(reason, f"{self._path}: the archive cannot be read on ({cause})")


class _Remembering:
    """A binary file that remembers what it gave last; as much of one as tarfile needs."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.last = b""

    def read(self, size: int) -> bytes:
        # A header that claims more than there can be must not make a buffer of that size.
        self.last = self._file.read(min(size, LARGEST_MEMBER))
        return self.last

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
