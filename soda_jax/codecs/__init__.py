"""Codecs: audio to frames of codes and back, behind one small interface.

`load_codec("mel:DIR")` gives the embedded mel codec; `docs/codec.md` shows how to add another.
"""

from soda_jax.codecs.interface import Codec, load_codec, saved_codec

__all__ = ["Codec", "load_codec", "saved_codec"]
