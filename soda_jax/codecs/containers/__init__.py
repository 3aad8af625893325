"""Where the samples of a sound file are: its header is checked against its bytes.

libsndfile believes the header of a file. Where the header is wrong, it returns a part of the samples
without an error. `find_parts` looks for the true end of the file, by container, and describes what
libsndfile is to decode: the file as it is, a range of it, several streams one after the other, or
a range behind a corrected header.
"""

import os
from typing import BinaryIO

from soda_jax.codecs.containers import chunks
from soda_jax.codecs.containers.common import (
    ContainerError,
    Part,
    PartFile,
    Reason,
    after_id3,
    read_at,
)
from soda_jax.codecs.containers.flac import flac
from soda_jax.codecs.containers.mpeg import mpeg
from soda_jax.codecs.containers.ogg import ogg

__all__ = ["ContainerError", "Part", "PartFile", "Reason", "find_parts", "is_checked"]

_FILES = {
    b"RIFF": chunks.wav,
    b"RIFX": chunks.wav,
    b"RF64": chunks.wav,
    b"BW64": chunks.wav,
    b"FORM": chunks.aiff,
    b"riff": chunks.w64,
    b"caff": chunks.caf,
    b".snd": chunks.au,
    b"dns.": chunks.au,
    b"NIST": chunks.nist,
    b"fLaC": flac,
}
_TRAILER = 4096  # bytes of tags or padding after the samples
# By libsndfile's names: formats that state no length, and one whose length it compares with the file.
_TO_THE_END = {"HTK", "IRCAM", "PAF", "PVF"}


def find_parts(file: BinaryIO) -> list[Part]:
    """What libsndfile is to decode, in order.

    Returns:
      The parts; one that covers the whole file where libsndfile may read it as it is, none if the
      container is not known here: see `is_checked`.

    Raises:
      ContainerError: `empty`, `truncated` or `undecodable`.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise ContainerError("empty", "the file has no bytes")
    start = after_id3(file, 0)
    parts: list[Part] = []
    while start < size:
        mark = read_at(file, start, 4)
        if mark == b"OggS":
            return parts + ogg(file, start, size)
        parse = _FILES.get(mark)
        if parse is None:
            break
        found, start = parse(file, start, size)
        parts += found
    if not parts:
        return mpeg(file, start, size)
    left = size - start
    if left > _TRAILER and any(read_at(file, start, left)):
        raise ContainerError(
            "undecodable",
            f"{left} bytes follow the samples that its header counts: rewrite it with its true length",
        )
    return parts


def is_checked(format: str) -> bool:
    """Whether the length of a file for which there are no parts is right, by libsndfile's format."""
    return format in _TO_THE_END
