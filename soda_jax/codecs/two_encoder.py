"""The two-encoder codec: semantic units from HuBERT, acoustic codes from EnCodec.

An alternative to Mimi, where one model gives both. Per frame of 1/25 s (see `encoder_pair`):

    column 0                 semantic: the k-means unit nearest to the mean of HuBERT's two features
    columns 1, 2, 3          EnCodec, first quantiser, its three steps in time order
    columns 4, 5, 6          EnCodec, second quantiser
    …

So q quantisers are 1 + 3q codebooks, 25 · (1 + 3q) tokens a second (175 for the two quantisers of
EnCodec's 1.5 kbit/s), and every code of EnCodec is kept: decoding gives what EnCodec itself gives.
Units say what is spoken and hold no sound: decoding needs the acoustic columns alone. Their order is
from coarse to fine, so that the first 1 + 3k columns are the sound of k quantisers.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from soda_jax.codecs.encoder_pair import FOLDERS, EncoderPair
from soda_jax.codecs.interface import check_codes
from soda_jax.codecs.quantiser import ResidualQuantiser
from soda_jax.codecs.saved import read_description
from soda_jax.errors import UserError
from soda_jax.files import write_atomic, write_json

FORMAT_VERSION = 1
_PIECE_SECONDS = 60  # of audio given to HuBERT at a time: its attention is quadratic
_DESCRIPTION, _UNITS = "codec.json", "units.safetensors"


class NoSoundError(UserError, ValueError):
    """Codes without a whole quantiser level of EnCodec: there is nothing to hear in them."""


class TwoEncoderCodec:
    """Fitted units and the two models; see `soda_jax.codecs.interface.Codec` for its attributes."""

    name = "two_encoder"

    def __init__(self, pair: EncoderPair, units: np.ndarray):
        """Args: pair: the models. units: centres of the units, float32 `[units, pair.dims]`."""
        self._pair, self._units = pair, np.ascontiguousarray(units, np.float32)
        self.sample_rate = pair.sample_rate
        self.samples_per_frame = pair.samples_per_frame
        self.frame_rate = self.sample_rate / self.samples_per_frame
        acoustic = (pair.codebook_size,) * (pair.quantisers * pair.steps)
        self.codebook_sizes = (len(units), *acoustic)
        digest = hashlib.sha256(f"two_encoder {self.codebook_sizes}".encode())
        digest.update(pair.digest())
        digest.update(self._units.astype("<f4").tobytes())
        self.fingerprint = digest.hexdigest()[:32]

    @classmethod
    def fit(
        cls, audio: Iterable[np.ndarray], pair: EncoderPair, *, units: int = 500, seed: int = 0
    ) -> Self:
        """Fits the units: k-means over the features of all frames.

        Args:
          audio: float32 mono clips `[samples]` at `pair.sample_rate`; the features of all of them are
            held in memory (3 kB a frame, 280 MB an hour, with 768 values each).
          pair: the models.
          units: how many, at most 65,536.
          seed: of the k-means.

        Raises:
          UserError: if there are fewer frames than units.
        """
        if not 1 <= units <= 65_536:
            raise UserError(f"--units={units}: give 1 to 65536")
        piece = _PIECE_SECONDS * pair.sample_rate // pair.samples_per_frame * pair.samples_per_frame
        features = [
            pair.features(clip[at : at + piece])
            for clip in audio
            for at in range(0, len(clip), piece)
        ]
        if not features:
            raise UserError("there is no audio to fit units on: give some clips")
        # One level over all components is plain k-means; decoding its entries gives the centres.
        fitted = ResidualQuantiser.fit(np.concatenate(features), (units,), pair.dims, seed)
        return cls(pair, fitted.decode(np.arange(units)[:, None]))

    def encode(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """uint16 `[frames, codebooks]` of each float32 mono clip `[samples]`; see `Codec.encode`."""
        # One clip at a time: padding to a batch would change HuBERT's features of the shorter ones.
        return [self._encode(clip) for clip in audio]

    def _encode(self, clip: np.ndarray) -> np.ndarray:
        features = self._pair.features(clip)
        # |f - c|² without |f|², which is the same for every unit.
        distance = (self._units**2).sum(axis=1) - 2 * (features @ self._units.T)
        semantic = distance.argmin(axis=1)[:, None]
        return np.concatenate([semantic, self._pair.codes(clip)], axis=1).astype(np.uint16)

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 mono `[frames * samples_per_frame]` of each `[frames, n]`; see `Codec.decode`.

        The whole quantiser levels among the columns are heard, an unfinished last one is not.

        Raises:
          NoSoundError: a ValueError, if there is no whole level: the least is 1 + 3 columns.
        """
        return [self._decode(check_codes(clip, self.codebook_sizes)) for clip in codes]

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        steps = self._pair.steps
        levels = (codes.shape[1] - 1) // steps
        if not levels:
            raise NoSoundError(
                f"the first {codes.shape[1]} codebooks of a two_encoder codec hold no sound: "
                f"{1 + steps} are the least, the units and EnCodec's first quantiser"
            )
        return self._pair.sound(codes[:, 1 : 1 + levels * steps])

    def save(self, directory: str | Path) -> None:
        """Writes all that the codec needs into `directory`, which is made if missing.

        `hubert/` and `encodec/` hold the models as transformers saves them, `units.safetensors` the
        centres of the units, `codec.json` the settings; it comes last.
        """
        import safetensors.numpy

        folder = Path(directory)
        self._pair.save(folder)
        write_atomic(folder / _UNITS, safetensors.numpy.save({"units": self._units}))
        description = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "quantisers": self._pair.quantisers,
        }
        write_json(folder / _DESCRIPTION, description)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads the folder that `save` wrote.

        Raises:
          UserError: naming the file that is missing, damaged, of another version, or of another codec.
        """
        folder = Path(path)
        quantisers, expected = _read_description(folder / _DESCRIPTION)
        units = _read_units(folder / _UNITS)
        for name in FOLDERS:  # transformers would look for a missing folder on the hub
            if not (folder / name).is_dir():
                raise UserError(
                    f"{folder / name} is missing: copy the folder of `soda codec fit-units` again"
                )
        pair = EncoderPair.open(folder / "hubert", folder / "encodec", quantisers)
        if units.ndim != 2 or units.shape[1] != pair.dims or not 0 < len(units) <= 65_536:
            raise UserError(f"{folder / _UNITS}: units {units.shape} are not [units, {pair.dims}]")
        codec = cls(pair, units)
        if codec.fingerprint != expected:
            raise UserError(
                f"{folder / _DESCRIPTION} and the files beside it do not belong together or are "
                "damaged: copy the folder again or run `soda codec fit-units`"
            )
        return codec


def _read_description(path: Path) -> tuple[int, str]:
    """Quantisers and fingerprint."""
    return read_description(
        path,
        TwoEncoderCodec.name,
        FORMAT_VERSION,
        "run `soda codec fit-units`",
        lambda value: (int(value["quantisers"]), str(value["fingerprint"])),
    )


def _read_units(path: Path) -> np.ndarray:
    import safetensors
    import safetensors.numpy

    try:
        units = safetensors.numpy.load_file(path)["units"]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): copy the folder of `soda codec fit-units` again"
        ) from None
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} does not hold the units ({error}): run `soda codec fit-units`"
        ) from None
    return units
