"""Reads metadata from tars: names and sizes of members, and the content of selected ones."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from soda_jax.errors import UserError
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.readers import UtteranceSource
from tokenize_pipeline.readers._folders import is_mac_metadata
from tokenize_pipeline.tar_stream import COMPRESSED, TarStream

_LARGEST_METADATA = 2**30  # bytes of a member
_WAV_HEADER = 44  # bytes, for 16-bit PCM without further chunks
# Bytes per second of compressed speech, from published totals. FLAC: LibriSpeech (openslr.org/12) has 59.3 GB for
# the 960.9 h of its training subsets, half of 16 bits at 16 kHz. MP3: Common Voice 13, English, has 76.4 GB
# for 3,209 h.
_BYTES_PER_SECOND = {".flac": 17_000, ".mp3": 6_600}


def is_tar(path: Path) -> bool:
    """Whether the file is a tar by its name, compressed or not."""
    return path.name.lower().endswith((".tar", *COMPRESSED))


def members(
    path: Path, wanted: Callable[[str], bool] = lambda name: False
) -> Iterator[tuple[str, int, bytes | None]]:
    """Yields (name, size in bytes, content) of the files in a `.tar`, `.tar.gz` or `.tgz`, in order.

    The content is None unless `wanted(name)`; select metadata only. A leading "./" of a name is removed.
    Files that macOS adds (see `is_mac_metadata`) are skipped.

    Raises:
      UserError: if the archive is missing or damaged. One row in the quarantine would not show that most
        of an archive is lost.
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
                        f"{path}: {member.name} is too large to read into memory: unpack the archive"
                    )
                content = stream.read(member)
            yield member.name, member.size, content
    except BadInputError as error:
        raise UserError(f"{error}; download it again or leave it out of --input") from None
    finally:
        if stream is not None:
            stream.close()


def find_metadata(
    path: Path, suffix: str, corpus: str, is_sound: Callable[[str], bool] = lambda name: True
) -> tuple[str, bytes, dict[str, int]]:
    """Returns name and content of a metadata file in a tar, and the sizes of the sounds in bytes.

    Args:
      path: the archive.
      suffix: last components of the path of the file, such as "en/meta.lst"; the first match is used.
      corpus: name of the corpus, for the message.
      is_sound: selects other members whose sizes are returned, in archive order.

    Raises:
      UserError: if there is no such file, or as in `members`.
    """
    found: tuple[str, bytes] | None = None
    sizes: dict[str, int] = {}
    for name, size, content in members(path, lambda name: f"/{name}".endswith(f"/{suffix}")):
        if content is not None:
            found = found or (name, content)
        elif is_sound(name):
            sizes.setdefault(name, size)
    if found is None:
        raise UserError(f"{path} has no {suffix}: it is not an archive of {corpus}")
    return *found, sizes


class Sounds(NamedTuple):
    """The sounds of an unpacked corpus or of an archive.

    Attributes:
      archive: path of the archive; None for an unpacked corpus.
      sizes: sizes of its members in bytes, for planning; may be empty.
      wav_rate: sample rate of 16-bit WAV files in Hz.
    """

    archive: str | None
    sizes: Mapping[str, int]
    wav_rate: int = 16_000

    def utterance(self, sound: str, text: str, where: str, **fields: Any) -> UtteranceSource:
        """Returns the utterance of the file or member `sound`; `fields` are those of `UtteranceSource`."""
        if sound in self.sizes:
            fields.setdefault("seconds", seconds_of(sound, self.sizes[sound], self.wav_rate))
        audio, member = (self.archive, sound) if self.archive else (sound, None)
        return UtteranceSource(text, audio, member=member, where=where, **fields)


def seconds_of(name: str, size: int, wav_rate: int = 16_000) -> float | None:
    """Returns the length of a mono sound in seconds by its file size; None for unknown suffixes.

    Args:
      name: name of the file; the suffix determines the format.
      size: size of the file in bytes.
      wav_rate: sample rate (Hz) of 16-bit WAV files, whose length is exact. Others are for planning only.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".wav":
        return max(size - _WAV_HEADER, 0) / (2 * wav_rate)
    return size / _BYTES_PER_SECOND[suffix] if suffix in _BYTES_PER_SECOND else None
