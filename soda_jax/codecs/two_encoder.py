"""Defines the two-encoder codec, with semantic units from HuBERT and acoustic codes from EnCodec.

The codec is an alternative to Mimi, whose single model produces both. A frame lasts 1/25 s (see
`encoder_pair`), and its codes have these columns:

    column 0                 semantic: the k-means unit nearest to the mean of two HuBERT features
    columns 1, 2, 3          first quantizer of EnCodec, three steps in time order
    columns 4, 5, 6          second quantizer
    …

With q quantizers there are 1 + 3q codebooks and 25 · (1 + 3q) tokens per second (175 for the two
quantizers of EnCodec at 1.5 kbit/s). All EnCodec codes are stored, so decoding returns EnCodec's
output. Decoding ignores the units and uses the acoustic columns, which are ordered from coarse to
fine; the first 1 + 3k columns contain the codes of k quantizers.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from soda_jax.codecs.encoder_pair import FOLDERS, EncoderPair
from soda_jax.codecs.interface import (
    check_codes,
    check_fingerprint,
    fingerprint,
    read_description,
    read_tensors,
    write_description,
)
from soda_jax.codecs.quantizer import ResidualQuantizer, nearest
from soda_jax.errors import UserError
from soda_jax.files import write_atomic

FORMAT_VERSION = 3
_PIECE_SECONDS = 60  # longest input of HuBERT in `fit`, because its attention is quadratic
_UNITS = "units.safetensors"
_FIX = "run `soda codec fit-units`"


class NoSoundError(UserError, ValueError):
    """Raised if codes do not include a complete EnCodec quantizer and cannot be decoded."""


class TwoEncoderCodec:
    """A codec of two models and fitted units; `codecs.interface.Codec` describes the attributes."""

    name = "two_encoder"

    def __init__(self, pair: EncoderPair, units: np.ndarray):
        """Wraps the two models and the centers of the units, float32 `[units, pair.dims]`."""
        self._pair, self._units = pair, np.ascontiguousarray(units, np.float32)
        self.sample_rate = pair.sample_rate
        self.samples_per_frame = pair.samples_per_frame
        self.frame_rate = self.sample_rate / self.samples_per_frame
        acoustic = (pair.codebook_size,) * (pair.quantizers * pair.steps)
        self.codebook_sizes = (len(units), *acoustic)
        settings, tensors = pair.state()
        settings |= {"codebook_sizes": self.codebook_sizes}
        self.fingerprint = fingerprint(settings, {**tensors, "units": self._units})

    @classmethod
    def fit(
        cls, audio: Iterable[np.ndarray], pair: EncoderPair, *, units: int = 500, seed: int = 0
    ) -> Self:
        """Fits the units by k-means on the features of all frames.

        Args:
          audio: float32 mono clips `[samples]` at `pair.sample_rate`. All their features are kept
            in memory (3 kB per frame and 280 MB per hour for 768-dimensional features).
          pair: the two models.
          units: number of units, at most 65,536.
          seed: seed of the k-means.

        Raises:
          UserError: if `units` is out of range, or there are fewer frames than units.
        """
        if not 1 <= units <= 65_536:
            raise UserError(f"--units={units}: it must be from 1 to 65536")
        piece = _PIECE_SECONDS * pair.sample_rate // pair.samples_per_frame * pair.samples_per_frame
        features = [
            pair.features(clip[at : at + piece])
            for clip in audio
            for at in range(0, len(clip), piece)
        ]
        if not features:
            raise UserError("there is no audio to fit units on: give at least one clip")
        # A residual quantizer with one codebook is k-means; its decoded entries are the centers.
        fitted = ResidualQuantizer.fit(np.concatenate(features), (units,), pair.dims, seed)
        return cls(pair, fitted.decode(np.arange(units)[:, None]))

    def encode(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encodes float32 mono `[samples]` to uint16 `[frames, codebooks]`; see `Codec.encode`."""
        # One clip per call, because padding would change the HuBERT features of shorter clips.
        return [self._encode(clip) for clip in audio]

    def _encode(self, clip: np.ndarray) -> np.ndarray:
        semantic = nearest(self._pair.features(clip), self._units)[:, None]
        return np.concatenate([semantic, self._pair.codes(clip)], axis=1).astype(np.uint16)

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Decodes `[frames, n]` to float32 mono `[frames * samples_per_frame]`; see `Codec.decode`.

        Only complete quantizers are decoded; the columns of an incomplete last one are ignored.

        Raises:
          NoSoundError: if there are fewer than 1 + 3 columns; the error is also a ValueError.
        """
        return [self._decode(check_codes(clip, self.codebook_sizes)) for clip in codes]

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        steps = self._pair.steps
        levels = (codes.shape[1] - 1) // steps
        if not levels:
            raise NoSoundError(
                f"the first {codes.shape[1]} codebooks of a two_encoder codec cannot be decoded to "
                f"sound: give at least {1 + steps}, the units and EnCodec's first quantizer"
            )
        return self._pair.sound(codes[:, 1 : 1 + levels * steps])

    def save(self, directory: str | Path) -> None:
        """Writes all files of the codec to `directory`, and creates it if missing.

        `hubert/` and `encodec/` contain the models as transformers saves them, `units.safetensors`
        contains the centers of the units, and `codec.json`, written last, contains the settings.
        """
        import safetensors.numpy

        folder = Path(directory)
        self._pair.save(folder)
        write_atomic(folder / _UNITS, safetensors.numpy.save({"units": self._units}))
        write_description(folder, FORMAT_VERSION, self, quantizers=self._pair.quantizers)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Opens a codec that `save` wrote.

        Raises:
          UserError: if a file is missing or damaged, or belongs to another version or codec.
        """
        folder = Path(path)
        quantizers, expected = read_description(
            folder,
            cls.name,
            FORMAT_VERSION,
            _FIX,
            lambda value: int(value["quantizers"]),
        )
        units = read_tensors(folder / _UNITS, _FIX).get("units", np.zeros(0))
        for name in FOLDERS:  # transformers would search the hub for a missing folder
            if not (folder / name).is_dir():
                raise UserError(
                    f"{folder / name} is missing: copy the output of `soda codec fit-units` again"
                )
        pair = EncoderPair(folder / "hubert", folder / "encodec", quantizers)
        codec = cls(pair, units)
        check_fingerprint(folder, codec.fingerprint, expected, _FIX)
        return codec
