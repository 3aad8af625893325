"""What every codec offers, and the one way to load one."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from soda_jax.errors import UserError


class Codec(Protocol):
    """Audio to codes `[frames, codebooks]` and back, at a fixed frame rate.

    Attributes:
      name: the kind of codec, as in the spec (`mel`).
      sample_rate: Hz, of the audio on both sides.
      samples_per_frame: audio samples that one frame of codes stands for.
      frame_rate: frames a second, `sample_rate / samples_per_frame`.
      codebook_sizes: entries of each codebook; the first is the coarsest.
      fingerprint: hex digest of the parameters and settings; equal fingerprints give equal codes,
        wherever the files lie.

    A codec that runs on an accelerator may also hold `clips_at_once: int`, the clips that one call of
    `encode` should bring: the pipeline then makes batches of that size and reads ahead.
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
        """Codes of a batch of clips.

        Args:
          audio: float32 mono clips `[samples]` at `sample_rate`.

        Returns:
          uint16 `[frames, codebooks]` for each clip, frames = ceil(samples / samples_per_frame); the
          last frame is filled up with zeros. A clip's codes do not depend on the batch it is in.
        """
        ...

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Audio of a batch of codes.

        Args:
          codes: integer `[frames, n]` for each clip, the first n ≤ codebooks columns of its codes.

        Returns:
          float32 mono `[frames * samples_per_frame]` for each clip, within [-1, 1].

        Raises:
          ValueError: for a wrong shape or a code outside its codebook.
        """
        ...

    def save(self, directory: str | Path) -> None:
        """Writes the codec so that `load_codec("<name>:<directory>")` opens an equal one."""
        ...


def check_codes(codes: np.ndarray, codebook_sizes: tuple[int, ...]) -> np.ndarray:
    """The codes as int64 `[frames, n]`, after checking that a codec of these sizes can decode them.

    Raises:
      ValueError: naming the first place that is wrong.
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


# Module and class of each kind, and the folder that its spec names.
_KINDS = {
    "mel": ("soda_jax.codecs.mel", "MelCodec", "the folder of `soda codec fit`"),
    "mimi": (
        "soda_jax.codecs.mimi.codec",
        "MimiCodec",
        "the folder of a Mimi model (mimi:hf:kyutai/mimi fetches one)",
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
        `mimi:PATH`, a folder with Mimi's published `config.json` and `model.safetensors`, or `mimi:hf:NAME`,
        the same from the Hugging Face Hub; `two_encoder:PATH`, the folder of `soda codec fit-units`.

    Raises:
      UserError: for an unknown kind, or files that are missing, damaged or of another format version.
    """
    kind, colon, path = spec.partition(":")
    if kind in _KINDS and path:
        module, name, _ = _KINDS[kind]
        return getattr(importlib.import_module(module), name).load(path)
    if not colon:
        raise UserError(f"codec {spec!r} names no kind: write it as mel:{spec} or mimi:{spec}")
    known = ", or ".join(f"{kind}:DIR, {folder}" for kind, (_, _, folder) in _KINDS.items())
    raise UserError(f"codec {spec!r} is not known: write {known}")


def saved_codec(directory: str | Path) -> str:
    """The spec of a codec that `save` wrote, from the name in its `codec.json`.

    Raises:
      UserError: if there is no such folder, or its description is damaged.
    """
    description = Path(directory) / "codec.json"
    try:
        return f"{json.loads(description.read_text(encoding='utf-8'))['name']}:{directory}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{description} does not name a codec ({error}): give the codec, as in mel:DIR"
        ) from None
