"""Defines the codec interface, opens codecs, and reads and writes the folder of a saved codec."""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from soda_jax.errors import UserError
from soda_jax.files import write_json

DESCRIPTION = "codec.json"
Parsed = TypeVar("Parsed")


class Codec(Protocol):
    """Converts audio to codes `[frames, codebooks]` and back, at a fixed frame rate.

    Attributes:
      name: the kind of codec, as in its spec (`mel`).
      sample_rate: sample rate of input and output audio in Hz.
      samples_per_frame: audio samples per frame of codes.
      frame_rate: frames per second, `sample_rate / samples_per_frame`.
      codebook_sizes: number of entries of each codebook; the first codebook is the coarsest.
      fingerprint: hex digest of the parameters and settings. Codecs with equal fingerprints produce
        equal codes. The digest does not depend on file paths.

    A codec that runs on an accelerator may also have an attribute `clips_at_once: int`, the best
    batch size for `encode`. The pipeline then builds batches of that size and reads ahead.
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
          uint16 `[frames, codebooks]` for each clip, with frames = ceil(samples /
          samples_per_frame). The last frame is padded with zeros. The codes of a clip do not depend
          on the other clips of the batch.
        """
        ...

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Decodes a batch of codes.

        Args:
          codes: integer `[frames, n]` for each clip, the first n ≤ codebooks columns of its codes.

        Returns:
          float32 mono `[frames * samples_per_frame]` for each clip, within [-1, 1].

        Raises:
          ValueError: if a shape is wrong, a code is outside its codebook, or the codec needs more
            than n codebooks (`two_encoder`).
        """
        ...

    def save(self, directory: str | Path) -> None:
        """Writes the codec so that `load_codec("<name>:<directory>")` opens an equal codec."""
        ...


def check_clip(clip: np.ndarray) -> np.ndarray:
    """Returns a clip as float32 `[samples]`; raises ValueError if it is not mono."""
    clip = np.asarray(clip, np.float32)
    if clip.ndim != 1:
        raise ValueError(f"audio has shape {clip.shape}, not mono [samples]")
    return clip


def check_codes(codes: np.ndarray, codebook_sizes: tuple[int, ...]) -> np.ndarray:
    """Returns `codes` as int64 `[frames, n]` if a codec with these codebooks can decode them.

    Raises:
      ValueError: if the shape or dtype is wrong, or a code is outside its codebook. The message
        contains the first such code.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or not 1 <= codes.shape[1] <= len(codebook_sizes):
        raise ValueError(
            f"codes have shape {codes.shape}, not [frames, 1 to {len(codebook_sizes)} codebooks]"
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


# Kind -> (module, class, description of the folder in the spec).
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
        `mimi:hf:NAME`, the same files from the Hugging Face Hub; `two_encoder:PATH`, the folder
        that `soda codec fit-units` wrote.

    Raises:
      UserError: if the kind is unknown, or if files are missing, damaged or have another
        format version.
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
      UserError: if `codec.json` is missing or damaged.
    """
    path = Path(directory) / DESCRIPTION
    try:
        return f"{json.loads(path.read_text(encoding='utf-8'))['name']}:{directory}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not name a codec ({error}): give the codec as mel:DIR"
        ) from None


def fingerprint(settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """Returns 32 hex digits that identify settings (as JSON) and tensors (f32, sorted by name)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name], "<f4").data)
    return digest.hexdigest()[:32]


def write_description(folder: Path, version: int, codec: Codec, **settings: Any) -> None:
    """Writes `codec.json` with the name and fingerprint of `codec`, and `settings`."""
    head = {"format_version": version, "name": codec.name, "fingerprint": codec.fingerprint}
    write_json(folder / DESCRIPTION, {**head, **settings})


def read_description(
    folder: Path, codec: str, version: int, fix: str, parse: Callable[[dict[str, Any]], Parsed]
) -> tuple[Parsed, str]:
    """Reads `codec.json` and returns (result of `parse`, fingerprint).

    Args:
      folder: the codec's folder.
      codec: the name that the file must contain.
      version: the format version that the file must contain.
      fix: what the user should do if the file is wrong, such as "run `soda codec fit`".
      parse: converts the JSON object; raises ValueError, KeyError, TypeError or AttributeError
        if it is invalid.

    Raises:
      UserError: if the file is missing or damaged, or describes another codec or version.
    """
    path = folder / DESCRIPTION
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        found, name = value["format_version"], value["name"]
        if name != codec:
            raise UserError(f"{path} describes a {name!r} codec: write {name}:DIR")
        if found != version:
            raise UserError(
                f"{path} has format version {found}, this program reads {version}: {fix} again or "
                "use the matching release"
            )
        return parse(value), str(value["fingerprint"])
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {fix}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not describe a {codec} codec ({error}): {fix}") from None


def read_tensors(path: Path, fix: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file by name.

    Raises:
      UserError: if the file is missing or damaged. The message contains `fix`.
    """
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {fix}") from None
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a safetensors file ({error}): {fix}") from None


def check_fingerprint(folder: Path, found: str, expected: str, fix: str) -> None:
    """Raises UserError if the fingerprint in `codec.json` does not match the other files.

    Args:
      folder: the codec's folder.
      found: fingerprint computed from the files.
      expected: fingerprint in `codec.json`.
      fix: see `read_description`.
    """
    if found != expected:
        raise UserError(
            f"the fingerprint in {folder / DESCRIPTION} does not match the files of this folder; one of "
            f"them is damaged: copy the folder again or {fix}"
        )
