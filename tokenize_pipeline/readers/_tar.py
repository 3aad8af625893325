"""Metadata inside tars: the names of members, and the content of those that a reader asks for."""

from collections.abc import Callable, Iterator
from pathlib import Path

from soda_jax.errors import UserError
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.readers._lines import RowError
from tokenize_pipeline.tar_stream import TarStream

_LARGEST_METADATA = 2**30  # bytes that are read at once


def members(
    path: Path, wanted: Callable[[str], bool] = lambda name: False
) -> Iterator[tuple[str, int, bytes | None]]:
    """Yields (name, size in bytes, content) of the files in a `.tar`, `.tar.gz` or `.tgz`, in its order.

    The content is read where `wanted` says so of the name, and None elsewhere: keep it to metadata. A
    leading "./" of a name is dropped.

    Raises:
      UserError: if there is no such archive, or nothing at all in it can be read.
      RowError: `truncated` or `undecodable`, where an archive is damaged after its first file; what was
        yielded before is sound.
    """
    count = 0
    stream = None
    try:
        stream = TarStream(str(path))
        while (member := stream.next()) is not None:
            content = None
            if wanted(member.name):
                if member.size > _LARGEST_METADATA:
                    raise UserError(f"{path}: {member.name} has {member.size} bytes: unpack it")
                content = stream.read(member)
            yield member.name, member.size, content
            count += 1
    except BadInputError as error:
        if not count:
            raise UserError(f"{error}: fetch the archive again") from None
        raise RowError(str(error).replace(str(path), path.name), error.reason) from None
    finally:
        if stream is not None:
            stream.close()
