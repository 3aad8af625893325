"""Ogg: the chained streams of a file, each of which libsndfile decodes by itself.

A file made with `cat`, and a recording of a radio stream, hold one stream after the other. libsndfile
1.2 decodes the first and reports no error.
"""

from typing import BinaryIO

from soda_jax.codecs.containers.common import ContainerError, Part, read_at

_FIRST = 2  # flag of the page that begins a stream


def ogg(file: BinaryIO, start: int, size: int) -> list[Part]:
    """The chained streams from `start` to the end of a file of `size` bytes.

    The flag of the last page is not required: recordings of live streams have none.

    Raises:
      ContainerError: `truncated` if the last page is not whole, `undecodable` if there is something
        else between two pages.
    """
    links: list[int] = []
    at, beginning = start, False
    while at < size:
        header = read_at(file, at, 27 + 255)
        if header[:4] != b"OggS":
            if (after := _next_page(file, at, size)) < 0:
                break  # a tag at the end
            raise ContainerError(
                "undecodable", f"{after - at} bytes at offset {at} are no Ogg page: it is damaged"
            )
        # Byte 26 is the number of segments; the length of each follows, then the segments.
        length = 27 + header[26] + sum(header[27 : 27 + header[26]]) if len(header) > 26 else 0
        if len(header) < 27 or at + length > size:
            raise ContainerError("truncated", "the file ends in the middle of an Ogg page")
        first = bool(header[5] & _FIRST)
        if first and not beginning:  # streams that run side by side begin together
            links.append(at)
        at, beginning = at + length, first
    return [Part(a, b) for a, b in zip(links, [*links[1:], size], strict=True)]


def _next_page(file: BinaryIO, at: int, size: int) -> int:
    """The offset of the next page; -1 if there is none."""
    while at < size:
        content = read_at(file, at, (1 << 16) + 3)
        if (found := content.find(b"OggS")) >= 0:
            return at + found
        at += 1 << 16
    return -1
