"""Codecs convert audio to frames of codes and back.

`load_codec("mel:DIR")` opens a mel codec. README.md lists the files, and docs/codec.md
explains how to add a codec.
"""

from soda_jax.codecs.interface import Codec, load_codec, saved_codec

__all__ = ["Codec", "load_codec", "saved_codec"]
