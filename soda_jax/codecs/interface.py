"""The interface of all codecs, and `load_codec`, which opens any of them."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from soda_jax.codecs.description import FILE
from soda_jax.errors import UserError


class Codec(Protocol):
    """Converts audio to codes `[frames, codebooks]` and back, at a fixed frame rate.

    Attributes:
      name: the kind of codec, as in the spec (`mel`).
      sample_rate: sample rate of input and output audio in Hz.
      samples_per_frame: audio samples per frame of codes.
      frame_rate: frames per second, `sample_rate / samples_per_frame`.
      codebook_sizes: number of entries of each codebook; the first codebook is the coarsest.
      fingerprint: hex digest of the parameters and settings. Codecs with equal fingerprints produce
        equal codes. The digest does not depend on file paths.

    A codec that runs on an accelerator may also have an attribute `clips_at_once: int`, the best number
    of clips for one call of `encode`. The pipeline then builds batches of that size and reads ahead.
    """

    @property
    def name(self) -> str: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def samples_per_frame(self) -> int: ...
    @property
    def frame_rate(self) -> float: ...
    @property
    def codebook_sizes(self) -> tuple[int, ...]: ...
    @property
    def fingerprint(self) -> str: ...

    def encode(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encodes a batch of clips.

        Args:
          audio: float32 mono clips `[samples]` at `sample_rate`.

        Returns:
          uint16 `[frames, codebooks]` for each clip, with frames = ceil(samples / samples_per_frame).
          The last frame is padded with zeros. The codes of a clip do not depend on the rest of the batch.
        """
        ...

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Decodes a batch of codes.

        Args:
          codes: integer `[frames, n]` for each clip: the first n ≤ codebooks columns of its codes.

        Returns:
          float32 mono `[frames * samples_per_frame]` for each clip, within [-1, 1].

        Raises:
          ValueError: if a shape is wrong or a code is outside its codebook.
        """
        ...

    def save(self, directory: str | Path) -> None:
        """Writes the codec so that `load_codec("<name>:<directory>")` opens an equal codec."""
        ...


def check_codes(codes: np.ndarray, codebook_sizes: tuple[int, ...]) -> np.ndarray:
    """Returns `codes` as int64 `[frames, n]` if a codec with these codebooks can decode them.

    Raises:
      ValueError: naming the first invalid code.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not 1 <= codes.shape[1] <= len(codebook_sizes):
        raise ValueError(
            f"codes are {codes.shape}, not [frames, 1 to {len(codebook_sizes)} codebooks]"
        )
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes are {codes.dtype}, not integers")
    codes = codes.astype(np.int64)
    wrong = np.argwhere((codes < 0) | (codes >= np.array(codebook_sizes[: codes.shape[1]])))
    if len(wrong):
        frame, book = wrong[0]
        raise ValueError(
            f"codes[{frame}, {book}] = {codes[frame, book]} is outside codebook {book} "
            f"(0–{codebook_sizes[book] - 1})"
        )
    return codes


# For each kind: module, class, and a description of the folder in its spec.
_KINDS = {
    "mel": ("soda_jax.codecs.mel", "MelCodec", "the folder of `soda codec fit`"),
    "mimi": (
        "soda_jax.codecs.mimi.codec",
        "MimiCodec",
        "the folder of a Mimi model (mimi:hf:kyutai/mimi downloads it)",
    ),
    "two_encoder": (
        "soda_jax.codecs.two_encoder",
        "TwoEncoderCodec",
        "the folder of `soda codec fit-units`",
    ),
}


def load_codec(spec: str) -> Codec:
    """Loads a codec from its spec, `KIND:PATH`.

    Args:
      spec: `mel:PATH`, the folder that `soda codec fit` wrote (or the `.safetensors` file in it);
        `mimi:PATH`, a folder with Mimi's published `config.json` and `model.safetensors`;
        `mimi:hf:NAME`, the same files from the Hugging Face Hub; `two_encoder:PATH`, the folder that
        `soda codec fit-units` wrote.

    Raises:
      UserError: if the kind is unknown, or if files are missing, damaged or of another format version.
    """
    kind, colon, path = spec.partition(":")
    if kind in _KINDS and path:
        module, name, _ = _KINDS[kind]
        return getattr(importlib.import_module(module), name).load(path)
    if not colon:
        raise UserError(f"codec {spec!r} has no kind: write mel:{spec} or mimi:{spec}")
    known = ", or ".join(f"{kind}:DIR, {folder}" for kind, (_, _, folder) in _KINDS.items())
    raise UserError(f"codec {spec!r} has an unknown kind: write {known}")


def saved_codec(directory: str | Path) -> str:
    """Returns the spec of a codec that `save` wrote, using the name in its `codec.json`.

    Raises:
      UserError: if there is no such folder, or `codec.json` is damaged.
    """
    path = Path(directory) / FILE
    try:
        return f"{json.loads(path.read_text(encoding='utf-8'))['name']}:{directory}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not name a codec ({error}): give the codec as mel:DIR"
        ) from None
