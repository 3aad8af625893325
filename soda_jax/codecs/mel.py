"""Defines the mel codec, a residual vector quantizer of log-mel columns fitted on your audio.

The codec needs no download and runs on a CPU far faster than real time. By default, its sample rate
and token rate are those of Mimi: 24 kHz, 12.5 frames per second, eight codebooks. The quality is
far below Mimi's: a single clean voice remains intelligible, and the first codebook is coarse but
not semantic.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from soda_jax.codecs.interface import (
    check_clip,
    check_codes,
    check_fingerprint,
    fingerprint,
    read_description,
    read_tensors,
    write_description,
)
from soda_jax.codecs.mel_features import MelGrid, log_mel, mel_to_audio
from soda_jax.codecs.quantizer import ResidualQuantizer
from soda_jax.errors import UserError
from soda_jax.files import write_atomic

FORMAT_VERSION = 1
_WEIGHTS = "codec.safetensors"
_FIX = "run `soda codec fit`"


@dataclass(frozen=True)
class MelSettings:
    """Settings of a mel codec.

    Attributes:
      grid: parameters of the log-mel columns.
      columns_per_frame: log-mel columns per frame of codes.
      components: number of principal components of a frame that are quantized.
      codebook_sizes: number of entries of each codebook.
      griffin_lim_iterations: iterations of Griffin-Lim phase reconstruction in decoding.
    """

    grid: MelGrid = dataclasses.field(default_factory=MelGrid)
    columns_per_frame: int = 4
    components: int = 96
    codebook_sizes: tuple[int, ...] = (512,) * 8
    griffin_lim_iterations: int = 32

    def __post_init__(self) -> None:
        grid, values = self.grid, self.grid.mels * self.columns_per_frame
        counts = (
            *(grid.sample_rate, grid.hop, grid.window, grid.mels, self.columns_per_frame),
            *(self.components, *self.codebook_sizes, self.griffin_lim_iterations),
        )
        wrong = ""
        if not all(type(count) is int and 0 < count <= 1_000_000 for count in counts):
            wrong = f"its settings must be integers from 1 to 1000000, not {counts}"
        elif not 0 < grid.floor < 1:
            wrong = f"floor {grid.floor} must be between 0 and 1"
        elif grid.hop % 2 or grid.window < 2 * grid.hop:
            wrong = f"hop {grid.hop} must be even and window {grid.window} at least twice the hop"
        elif self.components > values:
            wrong = f"components {self.components} exceed the {values} values of a frame"
        elif not self.codebook_sizes or max(self.codebook_sizes) > 65_536:
            wrong = (
                f"give at least one codebook, with at most 65536 entries, not {self.codebook_sizes}"
            )
        if wrong:
            raise UserError(f"mel codec: {wrong}")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Returns settings from the output of `asdict`.

        Raises:
          TypeError, KeyError: if a setting is missing or unknown.
          UserError: if a value is not valid.
        """
        lists = {"grid": MelGrid(**value["grid"]), "codebook_sizes": tuple(value["codebook_sizes"])}
        return cls(**{**value, **lists})


class MelCodec:
    """A fitted mel codec; `soda_jax.codecs.interface.Codec` describes the attributes."""

    name = "mel"

    def __init__(self, settings: MelSettings, quantizer: ResidualQuantizer):
        self.settings = settings
        self._quantizer = quantizer
        self.sample_rate = settings.grid.sample_rate
        self.samples_per_frame = settings.grid.hop * settings.columns_per_frame
        self.frame_rate = self.sample_rate / self.samples_per_frame
        self.codebook_sizes = settings.codebook_sizes
        self.fingerprint = fingerprint(dataclasses.asdict(settings), _tensors(quantizer))

    @classmethod
    def fit(
        cls, audio: Iterable[np.ndarray], settings: MelSettings | None = None, *, seed: int = 0
    ) -> Self:
        """Fits the codebooks on clips of speech.

        Args:
          audio: float32 mono clips `[samples]` at `settings.grid.sample_rate`. All their frames are
            kept in memory (by default 1.3 kB per frame, 60 MB per hour).
          settings: settings of the codec; None uses the defaults.
          seed: seed of the k-means; the same audio and seed produce the same codec on one machine.

        Raises:
          UserError: if there are fewer frames than entries in a codebook.
        """
        settings = settings or MelSettings()
        frames = [_frames(clip, settings) for clip in audio]
        if not frames:
            raise UserError("there is no audio to fit a codec on: give at least one clip")
        quantizer = ResidualQuantizer.fit(
            np.concatenate(frames), settings.codebook_sizes, settings.components, seed
        )
        return cls(settings, quantizer)

    def encode(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encodes f32 mono `[samples]` to uint16 `[frames, codebooks]`; see `Codec.encode`."""
        # One clip at a time, because in a batched product the last bits would depend on the batch.
        return [self._quantizer.encode(_frames(clip, self.settings)) for clip in audio]

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Decodes `[frames, n]` to f32 mono `[frames * samples_per_frame]`; see `Codec.decode`."""
        return [self._decode(check_codes(clip, self.codebook_sizes)) for clip in codes]

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        columns = self._quantizer.decode(codes).reshape(-1, self.settings.grid.mels)
        audio = mel_to_audio(columns, self.settings.grid, self.settings.griffin_lim_iterations)
        return np.clip(audio, -1, 1)

    def save(self, directory: str | Path) -> None:
        """Writes `codec.safetensors` and `codec.json` to `directory`, and creates it if missing."""
        import safetensors.numpy

        folder = Path(directory)
        write_atomic(folder / _WEIGHTS, safetensors.numpy.save(_tensors(self._quantizer)))
        write_description(folder, FORMAT_VERSION, self, settings=dataclasses.asdict(self.settings))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Opens a codec that `save` wrote.

        Args:
          path: the folder, or the `.safetensors` file in it.

        Raises:
          UserError: if a file is missing or damaged, or belongs to another version or codec.
        """
        folder = Path(path).parent if str(path).endswith(".safetensors") else Path(path)
        settings, expected = read_description(
            folder,
            cls.name,
            FORMAT_VERSION,
            _FIX,
            lambda value: MelSettings.from_json(value["settings"]),
        )
        tensors = read_tensors(folder / _WEIGHTS, _FIX)
        # The fingerprint also covers the names and shapes of the tensors.
        found = fingerprint(dataclasses.asdict(settings), tensors)
        check_fingerprint(folder, found, expected, _FIX)
        codebooks = tuple(tensors[_codebook(k)] for k in range(len(settings.codebook_sizes)))
        return cls(settings, ResidualQuantizer(tensors["mean"], tensors["basis"], codebooks))


def _frames(audio: np.ndarray, settings: MelSettings) -> np.ndarray:
    """Returns the log-mel columns of each frame, float32 `[frames, columns_per_frame * mels]`."""
    audio = check_clip(audio)
    frame = settings.grid.hop * settings.columns_per_frame
    if len(audio) == 0:
        return np.zeros((0, settings.columns_per_frame * settings.grid.mels), np.float32)
    padded = np.pad(audio, (0, -len(audio) % frame))
    return log_mel(padded, settings.grid).reshape(len(padded) // frame, -1)


def _codebook(level: int) -> str:
    return f"codebook_{level:02d}"


def _tensors(quantizer: ResidualQuantizer) -> dict[str, np.ndarray]:
    codebooks = {_codebook(k): book for k, book in enumerate(quantizer.codebooks)}
    return {"mean": quantizer.mean, "basis": quantizer.basis, **codebooks}
