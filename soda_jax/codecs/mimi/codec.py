"""Mimi behind the codec interface: read, fetched, saved, named by its fingerprint."""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import jax
import numpy as np

from soda_jax.codecs.interface import check_codes
from soda_jax.codecs.mimi import weights
from soda_jax.codecs.mimi.config import MimiConfig
from soda_jax.codecs.mimi.model import Mimi, abstract, fill_at_random
from soda_jax.codecs.mimi.runner import Batching, Runner
from soda_jax.codecs.saved import fingerprint, read_description
from soda_jax.errors import UserError
from soda_jax.files import link_or_copy, write_atomic, write_json

FORMAT_VERSION = 1
CODEBOOKS = 8  # of SODA, of the 32 that the published model has
DESCRIPTION = "codec.json"

Precision = Literal["float32", "bfloat16"]


class MimiCodec:
    """A Mimi model as a codec; see `soda_jax.codecs.interface.Codec` for what its attributes mean.

    Attributes:
      model: the network with its weights, in the memory of the host.
      dtype: of the activations.
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
        """Args:
        model: the network with its weights.
        dtype: type of the activations; the quantiser always works in f32.
        batching: how much is worked on at once; None chooses by the kind of device.
        devices: where; None is all of this process.
        source: folder of the published files it was read from, which `save` can link to.
        """
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"mimi computes in float32 or bfloat16, not {dtype}")
        self.config, self.dtype, self._source = model.config, dtype, source
        self.sample_rate = self.config.sampling_rate
        self.samples_per_frame = self.config.samples_per_frame
        self.frame_rate = self.config.frame_rate
        self.codebook_sizes = (self.config.codebook_size,) * model.codebooks
        self.model = model
        self._batching, self._given_devices = batching, devices

    @cached_property
    def runner(self) -> Runner:
        """The model on its devices; made when first needed, so that to look at a codec takes none.

        A job that starts workers looks at it before they do: on a TPU, or in the memory of a GPU, there
        is room for one process.
        """
        return Runner(self.model, self.dtype, self._batching, self._given_devices)

    @property
    def clips_at_once(self) -> int:
        """Clips of a batch on all devices."""
        return self.runner.clips

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights, settings, codebooks and type: equal ones give equal codes."""
        return _fingerprint(self.model, self.dtype)

    @classmethod
    def load(cls, path: str | Path, **changed: Any) -> Self:
        """Reads a published model, or what `save` wrote.

        Args:
          path: folder with `config.json` and `model.safetensors`, or the `.safetensors` file in it;
            `hf:NAME` is fetched from the Hugging Face Hub, see `fetch`.
          changed: `codebooks` (8, or those it was saved with) and arguments of the constructor.

        Raises:
          UserError: naming the file that is missing, damaged or of another model.
        """
        if str(path).startswith("hf:"):
            return cls.fetch(str(path).removeprefix("hf:"), **changed)
        folder = Path(path).parent if str(path).endswith(".safetensors") else Path(path)
        config, _ = weights.read_config(folder / weights.CONFIG)
        saved = _read_description(folder / DESCRIPTION)
        codebooks = changed.pop("codebooks", saved.get("codebooks", CODEBOOKS))
        if not 1 <= codebooks <= config.num_quantizers:
            raise UserError(f"{folder} has {config.num_quantizers} codebooks, not {codebooks}")
        model = weights.read_weights(folder / weights.WEIGHTS, config, codebooks)
        codec = cls(model, **{"dtype": saved.get("dtype", "float32"), "source": folder, **changed})
        same = codebooks == saved.get("codebooks") and codec.dtype == saved.get("dtype")
        if same and codec.fingerprint != saved["fingerprint"]:
            raise UserError(
                f"{folder / weights.WEIGHTS} is damaged, or not the one of {folder / DESCRIPTION}: "
                "copy the folder again"
            )
        return codec

    @classmethod
    def fetch(cls, name: str, **changed: Any) -> Self:
        """Reads a model of the Hugging Face Hub, downloaded once into its cache.

        Args:
          name: `kyutai/mimi`, or `kyutai/mimi@REVISION`.
          changed: see `load`.

        Raises:
          UserError: if it cannot be fetched.
        """
        try:
            import huggingface_hub
        except ImportError:
            raise UserError(
                f"fetching {name} needs huggingface_hub: pip install huggingface_hub"
            ) from None
        repository, _, revision = name.partition("@")
        try:
            folder = huggingface_hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=[weights.CONFIG, weights.WEIGHTS],
            )
        except Exception as error:  # the library raises a dozen kinds, all about this one download
            cause = str(error).split("\n", 1)[0] or type(error).__name__
            raise UserError(
                f"{name} cannot be fetched from the Hugging Face Hub ({cause}): check name and "
                "network, or give the folder of a copy as mimi:DIR"
            ) from None
        return cls.load(folder, **changed)

    @classmethod
    def random(
        cls, config: MimiConfig, seed: int = 0, *, codebooks: int = CODEBOOKS, **changed: Any
    ) -> Self:
        """A model with random weights, for tests: it has Mimi's shapes and understands nothing."""
        model = abstract(config, codebooks)
        fill_at_random(model, seed)
        return cls(model, **changed)

    def encode(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """uint16 `[frames, codebooks]` of each float32 mono clip `[samples]`; see `Codec.encode`."""
        clips = [np.asarray(clip, np.float32) for clip in audio]
        for clip in clips:
            if clip.ndim != 1:
                raise ValueError(f"audio is {clip.shape}, not mono [samples]")
        some = [place for place, clip in enumerate(clips) if len(clip)]
        found = self.runner.encode([clips[place] for place in some], self.samples_per_frame)
        codes = [np.zeros((0, len(self.codebook_sizes)), np.uint16) for _ in clips]
        for place, values in zip(some, found, strict=True):
            codes[place] = values.astype(np.uint16)
        return codes

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 mono `[frames * samples_per_frame]` of each `[frames, n]`; see `Codec.decode`."""
        checked = [check_codes(clip, self.codebook_sizes).astype(np.int32) for clip in codes]
        sounds = [np.zeros(0, np.float32) for _ in checked]
        for books in sorted({clip.shape[1] for clip in checked}):
            some = [n for n, c in enumerate(checked) if c.shape[1] == books and len(c)]
            found = self.runner.decode([checked[place] for place in some])
            for place, sound in zip(some, found, strict=True):
                sounds[place] = np.clip(sound.reshape(-1), -1, 1)
        return sounds

    def save(self, directory: str | Path) -> None:
        """Writes the published files and `codec.json`; the weights are linked where that is possible."""
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
        description = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "codebooks": model.codebooks,
            "dtype": self.dtype,
        }
        write_json(folder / DESCRIPTION, description)


def _fingerprint(model: Mimi, dtype: str) -> str:
    settings = {**dataclasses.asdict(model.config), "codebooks": model.codebooks, "dtype": dtype}
    del settings["num_quantizers"]  # those that are not used change nothing
    return fingerprint(settings, weights.tensors(model))


def _read_description(path: Path) -> dict[str, Any]:
    """What `save` wrote beside the published files; empty where it is not there."""
    if not path.exists():
        return {}
    names = ("fingerprint", "codebooks", "dtype")
    return read_description(
        path,
        MimiCodec.name,
        FORMAT_VERSION,
        "copy the folder",
        lambda value: {name: value[name] for name in names},
    )


def _link(source: Path, target: Path) -> None:
    """`link_or_copy` that replaces `target`."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        name = Path(folder) / target.name
        link_or_copy(source, name)
        os.replace(name, target)
