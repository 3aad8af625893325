"""Sounds inside archives, read where they lie: `.tar`, `.tar.gz`, `.tgz` and `.parquet`.

A plain tar is indexed once by its headers and then read anywhere. A compressed tar is one stream: a
reader keeps its place in it from one request to the next, and begins again only for what it has passed.
Of a Parquet file the row group that was read last is kept, of one column. Nothing is written to disk.
"""

import functools
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from tokenize_pipeline.parquet_cells import Found, ParquetCells
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.tar_stream import (
    COMPRESSED,
    LARGEST_MEMBER,
    Member,
    TarStream,
    UnsoundError,
    is_compressed,
    member_name,
)

SUFFIXES = (".tar", *COMPRESSED, ".parquet")
_OPEN_ARCHIVES = 4  # each may keep a row group, or the names of all members

Key = tuple[str, str]  # (path of the archive, member)


def is_archive(path: str) -> bool:
    """Whether the suffix is that of an archive whose members can be read."""
    return path.lower().endswith(SUFFIXES)


class _Archive(Protocol):
    def read(self, members: Sequence[str]) -> Iterator[Found]:
        """Yields each of the distinct `members` (names as `member_name` gives them) once, as it is met."""


class ArchiveReader:
    """Reads members of any number of archives; keep one for a run of requests that go forward.

    The order of what it yields depends on its requests alone, so that with a fresh reader equal
    requests give equal results.
    """

    def __init__(self) -> None:
        """Opens nothing yet."""
        self._open: OrderedDict[str, _Archive] = OrderedDict()

    def read(self, wanted: Iterable[Key]) -> Iterator[tuple[Key, bytes | BadInputError]]:
        """Yields every distinct (path, member) of `wanted` once, archive by archive, as it is met.

        In the place of a content stands a `BadInputError` where there is none: `missing`, `truncated`
        or `undecodable`, with a message that names archive and member.

        That the checksum of a compressed archive is wrong shows only behind its last member, when the
        others have been given out. It takes the place of that last one, so that somebody is told; an
        archive of which the last member is not wanted is not read so far.
        """
        by_path: dict[str, dict[str, list[str]]] = {}  # members, each with its spellings
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
    """Why a member was not found: it lay behind the damage of its archive, or it is not there."""
    if damage is not None:
        return BadInputError(damage.reason, f"{damage}; {member} was not found before")
    return BadInputError("missing", f"{path}: the archive has no member {member}")


def _too_large(path: str, member: str, size: int) -> BadInputError | None:
    """What is wrong with a member that must not be read at once, if that is so."""
    if size <= LARGEST_MEMBER:
        return None
    message = f"{path}: {member} has {size} bytes, at most {LARGEST_MEMBER} are read"
    return BadInputError("undecodable", message)


@functools.lru_cache(maxsize=_OPEN_ARCHIVES)
def _tar_index(
    path: str, size: int, changed: int
) -> tuple[dict[str, tuple[int, int]], BadInputError | None]:
    """Offset and size of every member of a plain tar, and what cut the list short, if anything."""
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

    def read(self, members: Sequence[str]) -> Iterator[Found]:
        try:
            state = os.stat(self._path)
            index, damage = _tar_index(self._path, state.st_size, state.st_mtime_ns)
            handle = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            cause = "there is no such archive" if missing else error.strerror
            reason = "missing" if missing else "undecodable"
            for member in members:
                yield member, BadInputError(reason, f"{self._path}: {cause}, so {member} is lost")
            return
        try:
            places = {member: index.get(member) for member in members}
            for member in sorted(members, key=lambda member: places[member] or (0, 0)):
                if (place := places[member]) is None:
                    yield member, _absent(self._path, member, damage)
                else:
                    yield member, self._cell(handle, member, *place)
        finally:
            os.close(handle)

    def _cell(self, handle: int, member: str, offset: int, size: int) -> bytes | BadInputError:
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
        self._at = 0  # members passed since the beginning
        self._header: Member | None = None  # of the next member, if it is known already
        self._order: dict[str, int] = {}  # of every member ever met
        self._complete = False  # whether the end, or damage, was reached once
        self._damage: BadInputError | None = None

    def read(self, members: Sequence[str]) -> Iterator[Found]:
        wanted = set(members)
        for _ in range(2):
            ahead = {name for name in wanted if self._lies_ahead(name)}
            while ahead and (found := self._next(ahead)) is not None:
                name, content = found
                if name in ahead:
                    ahead.remove(name)
                    wanted.remove(name)
                    yield name, content if ahead else self._unless_unsound(content)
            if not any(name in self._order for name in wanted):
                break
            self._rewind()
        for member in sorted(wanted):
            yield member, _absent(self._path, member, self._damage)

    def _lies_ahead(self, name: str) -> bool:
        return self._order.get(name, -1 if self._complete else self._at) >= self._at

    def _next(self, wanted: set[str]) -> Found | None:
        """The next member, with its content if it is wanted; None at the end or where it is damaged."""
        try:
            stream, member = self._peek()
            if member is not None:
                self._header = None
                # Of two members of one name the first counts.
                first = self._order.get(member.name, self._at) == self._at
                taken = first and member.name in wanted
                content: bytes | BadInputError = b""
                if taken:
                    large = _too_large(self._path, member.name, member.size)
                    content = large or stream.read(member)
                self._order.setdefault(member.name, self._at)
                self._at += 1
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

    def _unless_unsound(self, content: bytes | BadInputError) -> bytes | BadInputError:
        """The content, unless the archive ends here and its end says that it is damaged."""
        try:
            if self._peek()[1] is None:
                self._end(None)
        except BadInputError as error:
            self._end(error)
            return error if isinstance(error, UnsoundError) else content
        return content

    def _end(self, damage: BadInputError | None) -> None:
        self._complete, self._damage = True, damage
        self._rewind()

    def _rewind(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._at, self._header = None, 0, None
