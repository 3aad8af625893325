"""Metadata inside tars: the names of members, and the content of those that a reader asks for."""

from collections.abc import Callable, Iterator
from pathlib import Path

from soda_jax.errors import UserError
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.tar_stream import COMPRESSED, TarStream

_LARGEST_METADATA = 2**30  # bytes that are read at once


def is_tar(path: Path) -> bool:
    """Whether the name is that of a tar, compressed or not."""
    return path.name.lower().endswith((".tar", *COMPRESSED))


def members(
    path: Path, wanted: Callable[[str], bool] = lambda name: False
) -> Iterator[tuple[str, int, bytes | None]]:
    """Yields (name, size in bytes, content) of the files in a `.tar`, `.tar.gz` or `.tgz`, in its order.

    The content is read where `wanted` says so of the name, and None elsewhere: keep it to metadata. A
    leading "./" of a name is dropped.

    Raises:
      UserError: if the archive is missing or damaged. It is not left to the quarantine: one row there
        would not tell that most of an archive is lost.
    """
    stream = None
    try:
        stream = TarStream(str(path))
        while (member := stream.next()) is not None:
            content = None
            if wanted(member.name):
                if member.size > _LARGEST_METADATA:
                    raise UserError(
                        f"{path}: {member.name} is too large to hold: unpack the archive"
                    )
                content = stream.read(member)
            yield member.name, member.size, content
    except BadInputError as error:
        raise UserError(f"{error}; fetch it again or leave it out of --input") from None
    finally:
        if stream is not None:
            stream.close()
