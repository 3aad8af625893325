"""What a conversion wrote, read again and compared with what was meant."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from soda_jax.convert.forward import logits, prompt
from soda_jax.convert.safetensors_folder import DTYPES, TensorFolder
from soda_jax.convert.weights import Weights
from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig
from soda_jax.progress import Progress

_TYPE_NAMES = {"float32": "F32", "bfloat16": "BF16"}
_ROUNDING = 1e-4
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class RoundedWeights:
    """Weights as another type holds them, in f32; see `weights.Weights`."""

    def __init__(self, weights: Weights, dtype: str):
        """Args: weights: in f32. dtype: "float32", which changes nothing, or "bfloat16"."""
        self.config: DecoderConfig = weights.config
        self._weights, self._dtype = weights, DTYPES[dtype]

    def _round(self, values: np.ndarray) -> np.ndarray:
        return values.astype(self._dtype).astype(np.float32)

    def layer(self, number: int) -> dict[str, np.ndarray]:
        """See `Weights`."""
        return {name: self._round(values) for name, values in self._weights.layer(number).items()}

    def rows(self, table: str, first: int, last: int) -> np.ndarray:
        """See `Weights`."""
        return self._round(self._weights.rows(table, first, last))

    def final_norm(self) -> np.ndarray:
        """See `Weights`."""
        return self._round(self._weights.final_norm())


@dataclasses.dataclass(frozen=True)
class Logits:
    """Logits of one short prompt, before and after.

    Attributes:
      difference: largest absolute difference between them.
      deviation: standard deviation of those before, to compare it with.
    """

    difference: float
    deviation: float


def check_tensors(
    folder: TensorFolder, sums: Mapping[str, str], dtype: str | None, bar: Progress, mend: str
) -> None:
    """Reads every tensor and compares names, types and checksums.

    Args:
      folder: opened after everything was written.
      sums: crc32c by name.
      dtype: that all are of; None: any.
      bar: advanced by megabytes.
      mend: what to do about a tensor that differs.

    Raises:
      UserError: naming the file and the tensor that differs.
    """
    if folder.tensors.keys() != sums.keys():
        differing = sorted(folder.tensors.keys() ^ sums.keys())
        raise UserError(f"{folder.path}: tensor {differing[0]} is only on one side; {mend}")
    for name, tensor in folder.tensors.items():
        if dtype is not None and tensor.dtype != _TYPE_NAMES[dtype]:
            raise UserError(
                f"{folder.path / tensor.file}: {name} is {tensor.dtype}, {dtype} was written"
            )
        found = folder.checksum(name)
        if found != sums[name]:
            raise UserError(
                f"{folder.path / tensor.file}: {name} has crc32c {found}, {sums[name]} was "
                f"written; {mend}"
            )
        bar.advance(int(np.prod(tensor.shape)) * _BYTES[tensor.dtype] / 1e6)


def walk(weights: Weights, dtype: str) -> None:
    """Reads `weights` as `compare_logits` does, for a process that holds a part of them."""
    for _ in range(1 if dtype == "float32" else 2):
        logits(weights, prompt(weights.config))


def compare_logits(before: Weights, after: Weights, intended: Weights | None = None) -> Logits:
    """Runs one prompt through both; they must agree to rounding, since their numbers are the same.

    Args:
      before: what was converted.
      after: what was written, read again.
      intended: what should have been written, where that is not `before` (rounded to bf16).

    Raises:
      UserError: if the logits of `after` are not those of `intended`, or not finite.
    """
    tokens = prompt(after.config)
    first = logits(before, tokens)
    if not np.isfinite(first).all():
        raise UserError(
            "the logits of the model itself are not finite: it has weights that are NaN or infinite; take "
            "another checkpoint, or convert it all the same with --verify=tensors"
        )
    wanted = first if intended is None else logits(intended, tokens)
    found = logits(after, tokens)
    off = float(np.abs(found - wanted).max())
    # Products of several threads need not add up in the same order twice.
    if not off <= _ROUNDING * float(wanted.std()):
        raise UserError(
            f"the converted model computes other logits (by up to {off:.3g}) although its tensors are as "
            "written: config.json or the names do not say what the model is; please report this"
        )
    return Logits(float(np.abs(found - first).max()), float(first.std()))


def described(result: Logits) -> str:
    """One phrase for what is printed."""
    return (
        f"logits of a random prompt differ by at most {result.difference:.2g}, their standard deviation "
        f"is {result.deviation:.2g}"
    )
