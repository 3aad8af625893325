"""Reads sounds from archives without unpacking them: `.tar`, `.tar.gz`, `.tgz` and `.parquet`.

The headers of a plain tar are indexed once; members are then read at any offset. A compressed tar is one
stream: a reader keeps its position between requests, and restarts only for members it has passed. Of a
Parquet file, the last row group of one column is cached. Nothing is written to disk.
"""

import functools
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from tokenize_pipeline.parquet_cells import MemberContent, ParquetCells
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.tar_stream import (
    COMPRESSED,
    LARGEST_MEMBER,
    ChecksumError,
    Member,
    TarStream,
    is_compressed,
    member_name,
)

SUFFIXES = (".tar", *COMPRESSED, ".parquet")
_OPEN_ARCHIVES = 4  # each caches a row group, or the names of all members

ArchiveMember = tuple[str, str]  # (path of the archive, member)


def is_archive(path: str) -> bool:
    """Whether the suffix is that of a supported archive."""
    return path.lower().endswith(SUFFIXES)


class _Archive(Protocol):
    def read(self, members: Sequence[str]) -> Iterator[MemberContent]:
        """Yields each distinct member of `members` (as returned by `member_name`) once, in archive order."""


class ArchiveReader:
    """Reads members of any number of archives. Reuse it for consecutive requests in archive order.

    The order of the results depends only on the requests since the reader was created.
    """

    def __init__(self) -> None:
        """Opens nothing yet."""
        self._open: OrderedDict[str, _Archive] = OrderedDict()

    def read(
        self, wanted: Iterable[ArchiveMember]
    ) -> Iterator[tuple[ArchiveMember, bytes | BadInputError]]:
        """Yields each distinct (path, member) of `wanted` once, archive by archive, in archive order.

        Instead of the content, a `BadInputError` (`missing`, `truncated` or `undecodable`) names the
        archive and the member.

        The checksum of a compressed archive is stored after its last member. If it is wrong, the last
        member becomes the error; the others were already yielded. The checksum is not read if the last
        member is not wanted.
        """
        by_path: dict[str, dict[str, list[str]]] = {}  # normalized name -> spellings in `wanted`
        for path, member in dict.fromkeys(wanted):
            by_path.setdefault(path, {}).setdefault(member_name(member), []).append(member)
        for path, members in by_path.items():
            for name, content in self._archive(path).read(list(members)):
                for member in members[name]:
                    yield (path, member), content

    def _archive(self, path: str) -> _Archive:
        if path not in self._open:
            kind = ParquetCells if path.lower().endswith(".parquet") else _PlainTar
            self._open[path] = _CompressedTar(path) if is_compressed(path) else kind(path)
            if len(self._open) > _OPEN_ARCHIVES:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return self._open[path]


def _absent(path: str, member: str, damage: BadInputError | None) -> BadInputError:
    """Returns the error for a member that was not found: the archive is damaged or does not contain it."""
    if damage is not None:
        return BadInputError(damage.reason, f"{damage}; {member} was not found before the damage")
    return BadInputError("missing", f"{path}: the archive has no member {member}")


def _too_large(path: str, member: str, size: int) -> BadInputError | None:
    """Returns the error for a member above the size limit, or None."""
    if size <= LARGEST_MEMBER:
        return None
    message = f"{path}: {member} has {size} bytes, at most {LARGEST_MEMBER} are read"
    return BadInputError("undecodable", message)


@functools.lru_cache(maxsize=_OPEN_ARCHIVES)
def _tar_index(
    path: str, size: int, changed: int
) -> tuple[dict[str, tuple[int, int]], BadInputError | None]:
    """Returns the offset and size of each member of a plain tar, and the error that ended the list, if any."""
    members: dict[str, tuple[int, int]] = {}
    try:
        stream = TarStream(path)
        while (member := stream.next()) is not None:
            members.setdefault(member.name, (member.offset, member.size))
        stream.close()
    except BadInputError as error:
        return members, error
    return members, None


class _PlainTar:
    def __init__(self, path: str):
        self._path = path

    def read(self, members: Sequence[str]) -> Iterator[MemberContent]:
        try:
            state = os.stat(self._path)
            index, damage = _tar_index(self._path, state.st_size, state.st_mtime_ns)
            handle = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            cause = "no such archive" if missing else error.strerror
            reason = "missing" if missing else "undecodable"
            for member in members:
                yield member, BadInputError(reason, f"{self._path}: {cause}, {member} is lost")
            return
        try:
            for member in sorted(members, key=lambda member: index.get(member, (0, 0))):
                if member in index:
                    yield member, self._content(handle, member, *index[member])
                else:
                    yield member, _absent(self._path, member, damage)
        finally:
            os.close(handle)

    def _content(self, handle: int, member: str, offset: int, size: int) -> bytes | BadInputError:
        if (large := _too_large(self._path, member, size)) is not None:
            return large
        try:
            content = os.pread(handle, size, offset)
        except OSError as error:
            cause = error.strerror or type(error).__name__
            return BadInputError("undecodable", f"{self._path}: {member} cannot be read ({cause})")
        if len(content) < size:
            return BadInputError("truncated", f"{self._path}: the archive ends within {member}")
        return content


class _CompressedTar:
    def __init__(self, path: str):
        self._path = path
        self._stream: TarStream | None = None
        self._position = 0  # members passed since the beginning
        self._header: Member | None = None  # of the next member, if already read
        self._order: dict[str, int] = {}  # position of each member seen so far
        self._complete = False  # whether the end or a damage was reached
        self._damage: BadInputError | None = None

    def read(self, members: Sequence[str]) -> Iterator[MemberContent]:
        wanted = set(members)
        for _ in range(2):
            ahead = {name for name in wanted if self._is_ahead(name)}
            while ahead and (found := self._next(ahead)) is not None:
                name, content = found
                if name in ahead:
                    ahead.remove(name)
                    wanted.remove(name)
                    yield name, content if ahead else self._checked(content)
            if not any(name in self._order for name in wanted):
                break
            self._rewind()
        for member in sorted(wanted):
            yield member, _absent(self._path, member, self._damage)

    def _is_ahead(self, name: str) -> bool:
        return self._order.get(name, -1 if self._complete else self._position) >= self._position

    def _next(self, wanted: set[str]) -> MemberContent | None:
        """Returns the next member, with its content if it is wanted; None at the end or a damage."""
        try:
            stream, member = self._peek()
            if member is not None:
                self._header = None
                # Of two members with one name, the first is used.
                first = self._order.get(member.name, self._position) == self._position
                is_wanted = first and member.name in wanted
                content: bytes | BadInputError = b""
                if is_wanted:
                    large = _too_large(self._path, member.name, member.size)
                    content = large or stream.read(member)
                self._order.setdefault(member.name, self._position)
                self._position += 1
                return member.name if first else "", content
            self._end(None)
        except BadInputError as error:
            self._end(error)
        return None

    def _peek(self) -> tuple[TarStream, Member | None]:
        if self._stream is None:
            self._stream = TarStream(self._path)
        if self._header is None:
            self._header = self._stream.next()
        return self._stream, self._header

    def _checked(self, content: bytes | BadInputError) -> bytes | BadInputError:
        """Returns the content, or the checksum error if the archive ends here and is damaged."""
        try:
            if self._peek()[1] is None:
                self._end(None)
        except BadInputError as error:
            self._end(error)
            return error if isinstance(error, ChecksumError) else content
        return content

    def _end(self, damage: BadInputError | None) -> None:
        self._complete, self._damage = True, damage
        self._rewind()

    def _rewind(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._position, self._header = None, 0, None
