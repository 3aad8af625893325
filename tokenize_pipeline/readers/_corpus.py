"""Finds the data root, metadata and sounds of corpora in published layouts (folders or tars)."""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from soda_jax.errors import UserError
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.readers import UtteranceSource
from tokenize_pipeline.readers._lines import content_lines, lines
from tokenize_pipeline.tar_stream import COMPRESSED, TarStream

_LARGEST_METADATA = 2**30  # maximum bytes of a metadata file in an archive
_WAV_HEADER = 44  # bytes, for 16-bit PCM without further chunks
# Bytes per second of compressed speech, from published totals. FLAC: the training subsets of
# LibriSpeech (openslr.org/12) have 59.3 GB for 960.9 h, about half of 16-bit audio at 16 kHz. MP3:
# Common Voice 13 in English has 76.4 GB for 3,209 h.
_BYTES_PER_SECOND = {".flac": 17_000, ".mp3": 6_600}


class TextFile(NamedTuple):
    """A metadata file.

    Attributes:
      name: path relative to the data root, or name of the member of an archive.
      label: name in error messages.
      lines: (number from 1, line) of each line.
    """

    name: str
    label: str
    lines: Iterator[tuple[int, str]]


class Sounds(NamedTuple):
    """The sounds of an unpacked corpus or of an archive.

    Attributes:
      root: the data root.
      archive: path of the archive relative to `root`; None for an unpacked corpus.
      sizes: sizes of the sounds in the archive, in bytes, in archive order; may be empty.
      wav_rate: sample rate of 16-bit WAV files in Hz.
    """

    root: Path
    archive: str | None = None
    sizes: Mapping[str, int] = {}
    wav_rate: int = 16_000

    def exists(self, sound: str) -> bool:
        """Returns whether there is a file or member `sound`."""
        return sound in self.sizes if self.archive else (self.root / sound).is_file()

    def utterance(self, sound: str, text: str, where: str, **fields: Any) -> UtteranceSource:
        """Returns the utterance in file or member `sound`, with `fields` of `UtteranceSource`."""
        if sound in self.sizes:
            fields.setdefault("seconds", seconds_of(sound, self.sizes[sound], self.wav_rate))
        audio, member = (self.archive, sound) if self.archive else (sound, None)
        return UtteranceSource(text, audio, member=member, where=where, **fields)


@dataclass(frozen=True)
class Layout:
    """The published layout of a corpus; its inputs are metadata files or tars.

    Attributes:
      corpus: name of the corpus in error messages.
      example: path of a metadata file relative to the data root, for error messages.
      pattern: regular expression for paths of metadata files.
      metadata: suffixes of the metadata files in a tar. A suffix with a leading "/" matches only
        whole path components.
      tar_pattern: regular expression for names of tars.
      wav_rate: sample rate of 16-bit WAV files in Hz; for planning only.
    """

    corpus: str
    example: str
    pattern: str
    metadata: tuple[str, ...]
    tar_pattern: str = ".*"
    wav_rate: int = 16_000

    def data_root(self, inputs: Sequence[Path]) -> Path:
        """Returns the folder that contains the corpus or the tars; UserError for other files."""
        return common_folder(map(self._root, inputs))

    def _root(self, path: Path) -> Path:
        absolute = path.absolute()
        if is_tar(path) and re.fullmatch(self.tar_pattern, path.name):
            return absolute.parent
        above = re.fullmatch(f"(.*/){self.pattern}", absolute.as_posix(), re.ASCII | re.DOTALL)
        if above is None:
            raise UserError(
                f"{path} is neither {self.example} nor an archive of {self.corpus}: keep the published "
                "names and folders"
            )
        return Path(above[1])

    def open(
        self, inputs: Sequence[Path], is_sound: Callable[[str], bool] = lambda name: True
    ) -> Iterator[tuple[Path, list[TextFile], Sounds]]:
        """Yields (path, metadata files, sounds) of each input; for `is_sound` see `read_tar`."""
        root = self.data_root(inputs)
        for path in inputs:
            name = relative_path(root, path)
            if is_tar(path):
                files, sizes = read_tar(path, self.metadata, self.corpus, is_sound)
                yield path, files, Sounds(root, name, sizes, self.wav_rate)
            else:
                yield path, [TextFile(name, str(path), lines(path))], Sounds(root)


def read_tar(
    path: Path,
    suffixes: tuple[str, ...],
    corpus: str,
    is_sound: Callable[[str], bool] = lambda name: True,
) -> tuple[list[TextFile], dict[str, int]]:
    """Returns the metadata files of a tar, and the sizes of its sounds in bytes, in archive order.

    Args:
      path: the archive.
      suffixes: see `Layout.metadata`.
      corpus: name of the corpus in the error message.
      is_sound: selects the other members whose sizes are returned.

    Raises:
      UserError: if a suffix matches no file, or the archive is missing or damaged.
    """
    files, sizes = [], dict[str, int]()
    for name, size, content in members(path, lambda name: f"/{name}".endswith(suffixes)):
        if content is not None:
            label = f"{path}: {name}"
            files.append(TextFile(name, label, content_lines(content, label)))
        elif is_sound(name):
            sizes.setdefault(name, size)
    for suffix in suffixes:
        if not any(f"/{file.name}".endswith(suffix) for file in files):
            wanted = suffix[1:] if suffix.startswith("/") else f"*{suffix}"
            raise UserError(f"{path} has no {wanted}: it is not an archive of {corpus}")
    return files, sizes


def members(
    path: Path, wanted: Callable[[str], bool] = lambda name: False
) -> Iterator[tuple[str, int, bytes | None]]:
    """Yields (name, size in bytes, content) of the files in a `.tar`, `.tar.gz` or `.tgz`, in order.

    The content is None unless `wanted(name)` is true; `wanted` should select only metadata. A
    leading "./" of a name is removed. Files that macOS adds (see `is_mac_metadata`) are skipped.

    Raises:
      UserError: if the archive is missing or damaged. A single row in the quarantine would not show
        that most of an archive is lost.
    """
    try:
        with contextlib.closing(TarStream(str(path))) as stream:
            for member in iter(stream.next, None):
                if is_mac_metadata(member.name):
                    continue
                is_wanted = wanted(member.name)
                if is_wanted and member.size > _LARGEST_METADATA:
                    raise UserError(
                        f"{path}: {member.name} is too large to read into memory: unpack the archive"
                    )
                yield member.name, member.size, stream.read(member) if is_wanted else None
    except BadInputError as error:
        raise UserError(f"{error}; download it again or leave it out of --input") from None


def is_tar(path: Path) -> bool:
    """Returns whether a file is a tar, compressed or not, according to its name."""
    return path.name.lower().endswith((".tar", *COMPRESSED))


def is_mac_metadata(name: str) -> bool:
    """Returns whether macOS added the file: `._NAME`, `__MACOSX/…` or `.DS_Store`.

    Args:
      name: path relative to the folder or archive.
    """
    *folders, file = name.split("/")
    return file.startswith("._") or file == ".DS_Store" or "__MACOSX" in folders


def common_folder(folders: Iterable[Path]) -> Path:
    """Returns the deepest folder that contains all `folders`."""
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def relative_path(root: Path, path: Path) -> str:
    """Returns the path of a file or folder relative to the data root, with forward slashes."""
    return path.absolute().relative_to(root).as_posix()


def seconds_of(name: str, size: int, wav_rate: int = 16_000) -> float | None:
    """Returns the length of a mono sound in seconds from its size; None for unknown suffixes.

    Args:
      name: name of the file; the suffix determines the format.
      size: size of the file in bytes.
      wav_rate: sample rate (Hz) of 16-bit WAV files, whose length is exact. Other lengths are
        estimates for planning.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".wav":
        return max(size - _WAV_HEADER, 0) / (2 * wav_rate)
    return size / _BYTES_PER_SECOND[suffix] if suffix in _BYTES_PER_SECOND else None
