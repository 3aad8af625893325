"""Finds the samples of a sound file: its header is checked against its bytes.

libsndfile trusts the header of a file. If the header is wrong, it returns a part of the samples without
an error. `find_parts` finds the true end of the file, by container, and returns what libsndfile has to
decode: the file as it is, a range of it, several streams one after the other, or a range with a
corrected header.
"""

import os
from typing import BinaryIO

from soda_jax.codecs.containers import chunks
from soda_jax.codecs.containers.common import (
    Part,
    PartFile,
    Reason,
    SoundError,
    after_id3,
    read_at,
)
from soda_jax.codecs.containers.mpeg import mpeg
from soda_jax.codecs.containers.streams import flac, ogg

__all__ = ["Part", "PartFile", "Reason", "SoundError", "find_parts", "is_checked"]

_PARSERS = {  # by the first four bytes
    **dict.fromkeys((b"RIFF", b"RIFX", b"RF64", b"BW64"), chunks.wav),
    b"FORM": chunks.aiff,
    b"riff": chunks.w64,
    b"caff": chunks.caf,
    **dict.fromkeys((b".snd", b"dns."), chunks.au),
    b"NIST": chunks.nist,
    b"fLaC": flac,
}
_TRAILER = 4096  # bytes of tags or padding that may follow the samples
# libsndfile's names of three formats without a length and of one whose length it checks itself.
_CHECKED = {"HTK", "IRCAM", "PAF", "PVF"}


def find_parts(file: BinaryIO) -> list[Part]:
    """Returns what libsndfile has to decode, in order.

    Returns:
      The parts. A single part that covers the whole file means that libsndfile reads it correctly; no
      parts, that there is no parser for the container: see `is_checked`.

    Raises:
      SoundError: `empty`, `truncated` or `undecodable`.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise SoundError("empty", "the file has no bytes")
    start = after_id3(file, 0)
    parts: list[Part] = []
    while start < size:
        mark = read_at(file, start, 4)
        if mark == b"OggS":
            return parts + ogg(file, start, size)
        parse = _PARSERS.get(mark)
        if parse is None:
            break
        found, start = parse(file, start, size)
        parts += found
    if not parts:
        return mpeg(file, start, size)
    left = size - start
    if left > _TRAILER and any(read_at(file, start, left)):
        raise SoundError(
            "undecodable",
            f"{left} bytes follow the samples that its header counts: rewrite it with its true length",
        )
    return parts


def is_checked(format: str) -> bool:
    """Returns whether libsndfile checks the length of a format for which `find_parts` has no parser."""
    return format in _CHECKED
