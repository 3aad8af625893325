"""Implements the codec interface for a Mimi model, and downloads, loads and saves the model."""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import jax
import numpy as np

from soda_jax.codecs.interface import (
    DESCRIPTION,
    check_clip,
    check_codes,
    check_fingerprint,
    fingerprint,
    read_description,
    write_description,
)
from soda_jax.codecs.mimi import weights
from soda_jax.codecs.mimi.config import MimiConfig
from soda_jax.codecs.mimi.model import Mimi, abstract, fill_at_random
from soda_jax.codecs.mimi.runner import Batching, Runner
from soda_jax.errors import UserError
from soda_jax.files import link_or_copy, write_atomic, write_json

if TYPE_CHECKING:
    from soda_jax.codecs.mimi.streaming import StreamingDecoder

FORMAT_VERSION = 1
CODEBOOKS = 8  # SODA uses the first 8 of the 32 codebooks of the published model
_FIX = "download the model"

Precision = Literal["float32", "bfloat16"]


class MimiCodec:
    """A Mimi model as a codec; `soda_jax.codecs.interface.Codec` describes the other attributes.

    Attributes:
      model: the network with its weights, in host memory.
      dtype: dtype of the activations.
    """

    name = "mimi"

    def __init__(
        self,
        model: Mimi,
        *,
        dtype: Precision = "float32",
        batching: Batching | None = None,
        devices: Sequence[jax.Device] | None = None,
        source: Path | None = None,
    ):
        """Wraps a model.

        Args:
          model: the network with its weights.
          dtype: dtype of the activations; the distances to codebook entries are always f32.
          batching: sizes of batches and pieces; None chooses defaults for the platform.
          devices: devices to run on; None uses all local devices.
          source: folder from which the weights were read; `save` may hard-link its files.
        """
        if dtype not in ("float32", "bfloat16"):
            raise UserError(
                f"dtype {dtype!r} is not supported by mimi: use 'float32' or 'bfloat16'"
            )
        self.config, self.dtype, self._source = model.config, dtype, source
        self.sample_rate = self.config.sampling_rate
        self.samples_per_frame = self.config.samples_per_frame
        self.frame_rate = self.config.frame_rate
        self.codebook_sizes = (self.config.codebook_size,) * model.codebooks
        self.model = model
        self._batching, self._given_devices = batching, devices

    @cached_property
    def runner(self) -> Runner:
        """The model on its devices, created on first use.

        A job reads attributes such as `codebook_sizes` before it starts workers. If reading them
        claimed the TPU or the GPU memory, no worker could use the device.
        """
        return Runner(self.model, self.dtype, self._batching, self._given_devices)

    @property
    def clips_at_once(self) -> int:
        """Number of clips in a batch, summed over all devices."""
        return self.runner.clips

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights, settings, number of codebooks and dtype."""
        settings = dataclasses.asdict(self.config)
        del settings["num_quantizers"]  # unused codebooks do not change the codes
        settings |= {"codebooks": self.model.codebooks, "dtype": self.dtype}
        return fingerprint(settings, weights.tensors(self.model))

    @classmethod
    def load(cls, path: str | Path, **changed: Any) -> Self:
        """Opens a published model, or one that `save` wrote.

        Args:
          path: folder with `config.json` and `model.safetensors`, or the `.safetensors` file in it;
            or `hf:NAME` or `hf:NAME@REVISION` for a model on the Hugging Face Hub, which is
            downloaded once into the local cache.
          changed: `codebooks` (default: the saved number, or 8) and keyword arguments of
            `MimiCodec`; they override the saved values.

        Raises:
          UserError: if a file is missing or damaged, belongs to another model or cannot be
            downloaded.
        """
        if str(path).startswith("hf:"):
            path = _download(str(path).removeprefix("hf:"))
        folder = Path(path).parent if str(path).endswith(".safetensors") else Path(path)
        config, _ = weights.read_config(folder / weights.CONFIG)
        saved: dict[str, Any] = {}  # a published folder has no codec.json
        expected = ""
        if (folder / DESCRIPTION).exists():
            saved, expected = read_description(
                folder,
                cls.name,
                FORMAT_VERSION,
                _FIX,
                lambda value: {name: value[name] for name in ("codebooks", "dtype")},
            )
        chosen = {"codebooks": CODEBOOKS, "dtype": "float32", **saved, **changed}
        codebooks = chosen.pop("codebooks")
        if not 1 <= codebooks <= config.num_quantizers:
            raise UserError(f"{folder} has {config.num_quantizers} codebooks, not {codebooks}")
        model = weights.read_weights(folder / weights.WEIGHTS, config, codebooks)
        codec = cls(model, **{"source": folder, **chosen})
        if saved == {"codebooks": codebooks, "dtype": codec.dtype}:
            check_fingerprint(folder, codec.fingerprint, expected, _FIX)
        return codec

    @classmethod
    def random(
        cls, config: MimiConfig, seed: int = 0, *, codebooks: int = CODEBOOKS, **changed: Any
    ) -> Self:
        """Returns a codec with random weights, for tests and benchmarks."""
        model = abstract(config, codebooks)
        fill_at_random(model, seed)
        return cls(model, **changed)

    def encode(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encodes f32 mono `[samples]` to uint16 `[frames, codebooks]`; see `Codec.encode`."""
        clips = [check_clip(clip) for clip in audio]
        codes = self.runner.encode([clip for clip in clips if len(clip)], self.samples_per_frame)
        encoded, empty = iter(codes), np.zeros((0, len(self.codebook_sizes)), np.uint16)
        return [next(encoded).astype(np.uint16) if len(clip) else empty for clip in clips]

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Decodes `[frames, n]` to f32 mono `[frames * samples_per_frame]`; see `Codec.decode`."""
        checked = [check_codes(clip, self.codebook_sizes).astype(np.int32) for clip in codes]
        sounds = [np.zeros(0, np.float32) for _ in checked]
        for books in sorted({clip.shape[1] for clip in checked}):
            group = [n for n, c in enumerate(checked) if c.shape[1] == books and len(c)]
            decoded = self.runner.decode([checked[n] for n in group])
            for n, sound in zip(group, decoded, strict=True):
                sounds[n] = np.clip(sound.reshape(-1), -1, 1)
        return sounds

    def streaming_decoder(self) -> "StreamingDecoder":
        """Returns a decoder that decodes one clip frame by frame."""
        from soda_jax.codecs.mimi import streaming

        return streaming.StreamingDecoder(self)

    def save(self, directory: str | Path) -> None:
        """Writes the published files and `codec.json`; the weights are hard-linked if possible."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.model
        if self._source is None:
            import safetensors.numpy

            content = safetensors.numpy.save(weights.tensors(model))
            write_atomic(folder / weights.WEIGHTS, content)
            config = dataclasses.replace(self.config, num_quantizers=model.codebooks)
            write_json(folder / weights.CONFIG, config.to_json())
        elif self._source.resolve() != folder.resolve():
            _link(self._source / weights.WEIGHTS, folder / weights.WEIGHTS)
            _, published = weights.read_config(self._source / weights.CONFIG)
            write_json(folder / weights.CONFIG, published)
        write_description(folder, FORMAT_VERSION, self, codebooks=model.codebooks, dtype=self.dtype)


def _link(source: Path, target: Path) -> None:
    """Links or copies a file, replacing `target` atomically if it exists."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        name = Path(folder) / target.name
        link_or_copy(source, name)
        os.replace(name, target)


def _download(name: str) -> str:
    """Downloads a model from the Hugging Face Hub; returns its local folder."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"downloading {name} needs huggingface_hub: pip install huggingface_hub"
        ) from None
    repository, _, revision = name.partition("@")
    try:
        return huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=[weights.CONFIG, weights.WEIGHTS],
        )
    except Exception as error:  # the library raises many types of errors for a failed download
        cause = str(error).split("\n", 1)[0] or type(error).__name__
        raise UserError(
            f"{name} cannot be downloaded from the Hugging Face Hub ({cause}): check the name "
            "and the network, or give the folder of a copy as mimi:DIR"
        ) from None
