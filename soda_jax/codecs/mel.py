"""The mel codec: a log-mel residual vector quantiser fitted on the user's own audio.

It needs no download, runs on a CPU far faster than real time, and has Mimi's token shape: 24 kHz,
12.5 frames a second, eight codebooks by default. A toy beside Mimi: it keeps one clean voice
readable and knows nothing of meaning, so its first codebook is coarse, not semantic.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from soda_jax.codecs.interface import check_codes
from soda_jax.codecs.mel_features import MelGrid, log_mel, mel_to_audio
from soda_jax.codecs.quantiser import ResidualQuantiser
from soda_jax.codecs.saved import fingerprint, read_description
from soda_jax.errors import UserError
from soda_jax.files import write_atomic, write_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class MelSettings:
    """All that is chosen, not fitted.

    Attributes:
      grid: the log-mel columns.
      columns_per_frame: columns that one frame of codes stands for.
      components: principal components of a frame's columns that are quantised.
      codebook_sizes: entries of each codebook.
      griffin_lim_iterations: rounds of phase search when decoding.
    """

    grid: MelGrid = dataclasses.field(default_factory=MelGrid)
    columns_per_frame: int = 4
    components: int = 96
    codebook_sizes: tuple[int, ...] = (512,) * 8
    griffin_lim_iterations: int = 32

    def __post_init__(self) -> None:
        grid = self.grid
        counts = (
            *(grid.sample_rate, grid.hop, grid.window, grid.mels, self.columns_per_frame),
            *(self.components, *self.codebook_sizes, self.griffin_lim_iterations),
        )
        if not all(type(count) is int and 0 < count <= 1_000_000 for count in counts):
            raise UserError(f"the mel codec needs positive whole numbers, not {counts}")
        if not 0 < grid.floor < 1:
            raise UserError(f"the mel codec's floor is {grid.floor}: give one between 0 and 1")
        if grid.hop % 2 or grid.window < 2 * grid.hop:
            raise UserError(
                f"the mel codec needs an even hop and a window of at least twice that, not "
                f"{grid.hop} and {grid.window}"
            )
        if self.components > grid.mels * self.columns_per_frame:
            raise UserError(f"{self.components} components are more than a frame has values")
        if not self.codebook_sizes or max(self.codebook_sizes) > 65_536:
            raise UserError(f"codebook sizes {self.codebook_sizes} must be some, and at most 65536")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`; TypeError or KeyError if a name is missing or unknown."""
        rest = dict(value)
        grid = MelGrid(**rest.pop("grid"))
        sizes = tuple(rest.pop("codebook_sizes"))
        return cls(grid=grid, codebook_sizes=sizes, **rest)


class MelCodec:
    """A fitted mel codec; see `soda_jax.codecs.interface.Codec` for what its attributes mean."""

    name = "mel"

    def __init__(self, settings: MelSettings, quantiser: ResidualQuantiser):
        self.settings = settings
        self._quantiser = quantiser
        self.sample_rate = settings.grid.sample_rate
        self.samples_per_frame = settings.grid.hop * settings.columns_per_frame
        self.frame_rate = self.sample_rate / self.samples_per_frame
        self.codebook_sizes = settings.codebook_sizes
        self.fingerprint = _fingerprint(settings, _tensors(quantiser))

    @classmethod
    def fit(
        cls, audio: Iterable[np.ndarray], settings: MelSettings | None = None, *, seed: int = 0
    ) -> Self:
        """Fits the codebooks on clips of speech.

        Args:
          audio: float32 mono clips `[samples]` at `settings.grid.sample_rate`; the frames of all of them
            are held in memory (1.3 kB each, 60 MB an hour, by default).
          settings: the shape of the codec.
          seed: of the k-means; the same audio and seed give the same codec on one machine.

        Raises:
          UserError: if there are fewer frames than entries in a codebook.
        """
        settings = settings or MelSettings()
        frames = [_frames(clip, settings) for clip in audio]
        if not frames:
            raise UserError("there is no audio to fit a codec on: give some clips")
        quantiser = ResidualQuantiser.fit(
            np.concatenate(frames), settings.codebook_sizes, settings.components, seed
        )
        return cls(settings, quantiser)

    def encode(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """uint16 `[frames, codebooks]` of each float32 mono clip `[samples]`; see `Codec.encode`."""
        # One clip at a time: in a joint matrix product a clip's last bits would depend on the batch.
        return [self._quantiser.encode(_frames(clip, self.settings)) for clip in audio]

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 mono `[frames * samples_per_frame]` of each `[frames, n]`; see `Codec.decode`."""
        return [self._decode(check_codes(clip, self.codebook_sizes)) for clip in codes]

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        columns = self._quantiser.decode(codes).reshape(-1, self.settings.grid.mels)
        audio = mel_to_audio(columns, self.settings.grid, self.settings.griffin_lim_iterations)
        return np.clip(audio, -1, 1)

    def save(self, directory: str | Path) -> None:
        """Writes `codec.safetensors` and `codec.json` in `directory`, which is made if missing."""
        import safetensors.numpy

        folder = Path(directory)
        write_atomic(
            folder / "codec.safetensors", safetensors.numpy.save(_tensors(self._quantiser))
        )
        description = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "settings": self.settings.to_json(),
        }
        write_json(folder / "codec.json", description)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote.

        Args:
          path: the folder, or the `.safetensors` file in it.

        Raises:
          UserError: naming the file that is missing, damaged, of another version, or of another codec.
        """
        folder = Path(path).parent if str(path).endswith(".safetensors") else Path(path)
        description = folder / "codec.json"
        settings, expected = _read_description(description)
        tensors = _read_tensors(folder / "codec.safetensors", settings)
        if _fingerprint(settings, tensors) != expected:
            raise UserError(
                f"{description} and {folder / 'codec.safetensors'} do not belong together or are "
                "damaged: copy both again or run `soda codec fit`"
            )
        codebooks = tuple(tensors[_codebook(k)] for k in range(len(settings.codebook_sizes)))
        return cls(settings, ResidualQuantiser(tensors["mean"], tensors["basis"], codebooks))


def _frames(audio: np.ndarray, settings: MelSettings) -> np.ndarray:
    """Log-mel columns of each frame, float32 `[frames, columns_per_frame * mels]`."""
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1:
        raise ValueError(f"audio is {audio.shape}, not mono [samples]")
    frame = settings.grid.hop * settings.columns_per_frame
    if len(audio) == 0:
        return np.zeros((0, settings.columns_per_frame * settings.grid.mels), np.float32)
    padded = np.pad(audio, (0, -len(audio) % frame))
    return log_mel(padded, settings.grid).reshape(len(padded) // frame, -1)


def _codebook(level: int) -> str:
    return f"codebook_{level:02d}"


def _tensors(quantiser: ResidualQuantiser) -> dict[str, np.ndarray]:
    codebooks = {_codebook(k): book for k, book in enumerate(quantiser.codebooks)}
    return {"mean": quantiser.mean, "basis": quantiser.basis, **codebooks}


def _fingerprint(settings: MelSettings, tensors: dict[str, np.ndarray]) -> str:
    return fingerprint(settings.to_json(), tensors)


def _read_description(path: Path) -> tuple[MelSettings, str]:
    return read_description(
        path,
        MelCodec.name,
        FORMAT_VERSION,
        "run `soda codec fit`",
        lambda value: (MelSettings.from_json(value["settings"]), str(value["fingerprint"])),
    )


def _read_tensors(path: Path, settings: MelSettings) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    dims = settings.grid.mels * settings.columns_per_frame
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (dims,),
        "basis": (dims, settings.components),
        **{_codebook(k): (n, settings.components) for k, n in enumerate(settings.codebook_sizes)},
    }
    try:
        tensors = safetensors.numpy.load_file(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): name a folder that `soda codec fit` wrote"
        ) from None
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a safetensors file ({error}): run `soda codec fit`"
        ) from None
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes or any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise UserError(
            f"{path} does not hold the tensors that its codec.json describes: run `soda codec fit`"
        )
    return tensors
