"""Reads audio from archives without unpacking them: `.tar`, `.tar.gz`, `.tgz` and `.parquet`.

The headers of a plain tar are indexed once. The headers of a compressed tar are indexed while it is
read; reading an earlier member decompresses the archive again. Nothing is written to disk.
"""

import contextlib
import functools
import itertools
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

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
    """Returns whether `path` has the suffix of a supported archive."""
    return path.lower().endswith(SUFFIXES)


class ArchiveReader:
    """Reads members of any number of archives.

    The most recently used archives stay open, so use one reader for consecutive requests. The order
    of the results depends only on the requests to this reader.
    """

    def __init__(self) -> None:
        """Creates a reader; archives are opened when they are read."""
        self._open: OrderedDict[str, _Tar | ParquetCells] = OrderedDict()

    def read(
        self, wanted: Iterable[ArchiveMember]
    ) -> Iterator[tuple[ArchiveMember, bytes | BadInputError]]:
        """Yields the content of each distinct (path, member) of `wanted`.

        Results are grouped by archive; the members of an archive are in archive order.

        If a member cannot be read, a `BadInputError` (`missing`, `truncated` or `undecodable`) that
        names the archive and the member is yielded instead of its content.

        The checksum of a compressed archive is stored after its last member. If it is wrong, an
        error is yielded instead of the last member; the other members have already been yielded.
        The checksum is not read if the last member is not wanted.
        """
        by_path: dict[str, dict[str, list[str]]] = {}  # normalized name -> spellings in `wanted`
        for path, member in dict.fromkeys(wanted):
            by_path.setdefault(path, {}).setdefault(member_name(member), []).append(member)
        for path, members in by_path.items():
            for name, content in self._archive(path).read(list(members)):
                for member in members[name]:
                    yield (path, member), content

    def _archive(self, path: str) -> "_Tar | ParquetCells":
        if path not in self._open:
            is_parquet = path.lower().endswith(".parquet")
            self._open[path] = ParquetCells(path) if is_parquet else _Tar(path)
            if len(self._open) > _OPEN_ARCHIVES:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return self._open[path]


class _Tar:
    """A tar with an index of the members whose headers have been read so far."""

    def __init__(self, path: str):
        self._path = path
        self._stream: TarStream | None = None
        self._index: dict[str, Member] = {}  # in archive order
        self._complete = False  # whether the end or damaged data was reached
        self._damage: BadInputError | None = None
        if not is_compressed(path):
            self._index, self._damage = _plain_index(path, _version(path))
            self._complete = True

    def read(self, members: Sequence[str]) -> Iterator[MemberContent]:
        """Yields each distinct member of `members` (normalized names) once, in archive order."""
        wanted = set(members)
        known = [self._index[name] for name in wanted if name in self._index]
        known.sort(key=lambda member: member.offset)
        for member in itertools.chain(known, self._following()):
            if member.name in wanted:
                wanted.remove(member.name)
                content = self._content(member)
                is_end = self._complete or not wanted
                yield member.name, self._checked(member, content) if is_end else content
            if not wanted:
                return
        for name in sorted(wanted):
            if self._damage is None:
                message = f"{self._path}: the archive has no member {name}"
                yield name, BadInputError("missing", message)
            else:
                yield name, _lost(name, self._damage)

    def _following(self) -> Iterator[Member]:
        """Yields the members after the last one in the index, and adds them to the index."""
        while not self._complete:
            try:
                member = self._opened().next()
            except BadInputError as error:
                self._end(error)
                return
            if member is None:
                self._end(None)
            elif member.name not in self._index:  # if a name is repeated, the first member is used
                self._index[member.name] = member
                yield member

    def _opened(self) -> TarStream:
        self._stream = self._stream or TarStream(self._path)
        return self._stream

    def _content(self, member: Member) -> bytes | BadInputError:
        if member.size > LARGEST_MEMBER:
            message = f"{member.name} has {member.size} bytes, at most {LARGEST_MEMBER} are read"
            return BadInputError("undecodable", f"{self._path}: {message}")
        try:
            return self._opened().read(member)
        except BadInputError as error:
            self._end(error)
            return _lost(member.name, error)

    def _checked(self, member: Member, content: bytes | BadInputError) -> bytes | BadInputError:
        """Returns the content, or the checksum error of the archive for its last member."""
        is_last = next(reversed(self._index)) == member.name and not any(self._following())
        return self._damage if is_last and isinstance(self._damage, ChecksumError) else content

    def _end(self, damage: BadInputError | None) -> None:
        self._complete, self._damage = True, self._damage or damage
        if self._stream is not None:
            self._stream.close()
        self._stream = None


def _lost(name: str, damage: BadInputError) -> BadInputError:
    return BadInputError(damage.reason, f"{damage}; {name} cannot be read")


def _version(path: str) -> tuple[int, int] | None:
    """Returns (size, mtime in ns), which changes with the file; None if there is no file."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=_OPEN_ARCHIVES)
def _plain_index(
    path: str, version: tuple[int, int] | None
) -> tuple[dict[str, Member], BadInputError | None]:
    """Returns the members of a plain tar by name, and the error that stopped the indexing, if any.

    `version` is part of the cache key, so that a changed archive is indexed again.
    """
    members: dict[str, Member] = {}
    try:
        with contextlib.closing(TarStream(path)) as stream:
            for member in iter(stream.next, None):
                members.setdefault(member.name, member)
    except BadInputError as error:
        return members, error
    return members, None
