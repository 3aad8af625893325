"""Metadata inside tars: the names of members, and the content of those that a reader asks for."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from soda_jax.errors import UserError
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.readers._folders import is_mac_metadata
from tokenize_pipeline.tar_stream import COMPRESSED, TarStream

_LARGEST_METADATA = 2**30  # bytes that are read at once
_WAV_HEADER = 44  # bytes, of 16-bit PCM without further chunks
# Bytes a second of compressed speech, by published totals. FLAC: LibriSpeech (openslr.org/12) has 59.3 GB for
# the 960.9 h of its training subsets, half of 16 bits at 16 kHz. MP3: Common Voice 13, English, has 76.4 GB
# for 3,209 h.
_BYTES_PER_SECOND = {".flac": 17_000, ".mp3": 6_600}


def is_tar(path: Path) -> bool:
    """Whether the name is that of a tar, compressed or not."""
    return path.name.lower().endswith((".tar", *COMPRESSED))


def members(
    path: Path, wanted: Callable[[str], bool] = lambda name: False
) -> Iterator[tuple[str, int, bytes | None]]:
    """Yields (name, size in bytes, content) of the files in a `.tar`, `.tar.gz` or `.tgz`, in its order.

    The content is read where `wanted` says so of the name, and None elsewhere: keep it to metadata. A
    leading "./" of a name is dropped. What macOS adds (see `is_mac_metadata`) is left out.

    Raises:
      UserError: if the archive is missing or damaged. It is not left to the quarantine: one row there
        would not tell that most of an archive is lost.
    """
    stream = None
    try:
        stream = TarStream(str(path))
        while (member := stream.next()) is not None:
            if is_mac_metadata(member.name):
                continue
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


def seconds_of(name: str, size: int, wav_rate: int = 16_000) -> float | None:
    """How long a mono sound is by the size of its file, for planning; None for other suffixes.

    Args:
      name: of the file; its suffix says how the sound is stored.
      size: of the file, in bytes.
      wav_rate: Hz of the WAV files of the corpus, which have 16 bits a sample. Theirs is the exact length.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".wav":
        return max(size - _WAV_HEADER, 0) / (2 * wav_rate)
    return size / _BYTES_PER_SECOND[suffix] if suffix in _BYTES_PER_SECOND else None
