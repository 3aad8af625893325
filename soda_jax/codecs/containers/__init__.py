"""Finds the samples of a sound file by checking its header against its bytes.

libsndfile trusts the header of a file. If the header is wrong, libsndfile returns only part of the
samples and reports no error. `find_parts` finds the true end of a file in each container format and
returns what libsndfile must decode: the whole file, a range of it, several consecutive streams, or
a range with a corrected header.
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
# Format names of libsndfile. IRCAM, PAF and PVF headers contain no length that could be wrong, and
# libsndfile checks the length in an HTK header.
_CHECKED = {"HTK", "IRCAM", "PAF", "PVF"}


def find_parts(file: BinaryIO) -> list[Part]:
    """Returns the parts that libsndfile must decode, in order.

    Returns:
      The parts. `[Part(0, size)]` means that libsndfile reads the whole file correctly. An empty
      list means that there is no parser for the container; see `is_checked`.

    Raises:
      SoundError: with the reason `empty`, `truncated` or `undecodable`.
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
            f"{left} bytes follow the samples declared in its header: rewrite its header",
        )
    return parts


def is_checked(format: str) -> bool:
    """Returns whether libsndfile itself finds the true end of files in `format`."""
    return format in _CHECKED
