"""Defines the vocabulary layout, which determines all token ids.

The ids are, in order: the text vocabulary (including its special tokens), four markers, and the
codes of each codebook. `VocabularyLayout.soda()` is the layout of the paper, with 144,644 ids.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from soda_jax.errors import UserError

MARKERS = ("<|text_start|>", "<|text_end|>", "<|audio_start|>", "<|audio_end|>")
TEXT_CLASS = 0


@dataclasses.dataclass(frozen=True)
class VocabularyLayout:
    """The ranges of text, markers and codebooks among the token ids.

    Attributes:
      text_size: size of the text vocabulary, including its special tokens.
      specials: ids that are never used for ordinary text, ascending; they include BOS and EOS.
      bos: id of the token that begins a document.
      eos: id of the token that ends a document.
      codebook_sizes: number of entries of each codebook; the first is the semantic one.

    Raises:
      UserError: if `text_size` is less than 2, a codebook size is less than 1, `specials` are not
        ascending text ids, or `bos` and `eos` are not two different special ids.
    """

    text_size: int
    specials: tuple[int, ...]
    bos: int
    eos: int
    codebook_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.text_size < 2 or any(size < 1 for size in self.codebook_sizes):
            raise UserError(
                f"text_size {self.text_size} must be at least 2, and codebook_sizes "
                f"{self.codebook_sizes} at least 1"
            )
        if list(self.specials) != sorted(set(self.specials)):
            raise UserError("special text ids must be ascending and distinct")
        if self.specials and not 0 <= self.specials[0] <= self.specials[-1] < self.text_size:
            raise UserError(f"special text ids must be in 0–{self.text_size - 1}")
        if self.bos == self.eos or not {self.bos, self.eos} <= set(self.specials):
            raise UserError(f"BOS {self.bos} and EOS {self.eos} must be two special text ids")

    @classmethod
    def soda(cls) -> "VocabularyLayout":
        """Returns the layout of the paper: Llama-3 text (0–128255), markers, 8 × 2,048 codes."""
        return cls(128_256, tuple(range(128_000, 128_256)), 128_000, 128_001, (2048,) * 8)

    @property
    def text_start(self) -> int:
        """Id of `<|text_start|>`."""
        return self.text_size

    @property
    def text_end(self) -> int:
        """Id of `<|text_end|>`."""
        return self.text_size + 1

    @property
    def audio_start(self) -> int:
        """Id of `<|audio_start|>`."""
        return self.text_size + 2

    @property
    def audio_end(self) -> int:
        """Id of `<|audio_end|>`."""
        return self.text_size + 3

    @property
    def audio_base(self) -> int:
        """First audio id; smaller ids are text and markers."""
        return self.text_size + len(MARKERS)

    @property
    def codebooks(self) -> int:
        """Number of codebooks, including the semantic one."""
        return len(self.codebook_sizes)

    @property
    def size(self) -> int:
        """Number of ids in the vocabulary."""
        return self.audio_base + sum(self.codebook_sizes)

    @functools.cached_property
    def codebook_offsets(self) -> np.ndarray:
        """First id of each codebook, int64 `[codebooks]`."""
        sizes = np.array((0, *self.codebook_sizes[:-1]), np.int64)[: self.codebooks]
        return self.audio_base + np.cumsum(sizes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the target classes: text, semantic, acoustic_1 …, marker."""
        audio = tuple("semantic" if k == 0 else f"acoustic_{k}" for k in range(self.codebooks))
        return ("text", *audio, "marker")

    @functools.cached_property
    def class_of_id(self) -> np.ndarray:
        """Target class of each id, int8 `[size]`.

        Class 0 is text, class k + 1 is codebook k, and class codebooks + 1 is for markers, BOS and
        EOS. Other special text ids are in the text class.
        """
        classes = np.full(self.size, TEXT_CLASS, np.int8)
        marker = self.codebooks + 1
        classes[[self.bos, self.eos]] = marker
        classes[self.text_size : self.audio_base] = marker
        sizes = np.array(self.codebook_sizes, np.int64)
        classes[self.audio_base :] = np.repeat(np.arange(1, marker), sizes)
        return classes

    @functools.cached_property
    def ordinary_text(self) -> np.ndarray:
        """Mask of the ids that a text may contain, bool `[size]`."""
        ordinary = np.zeros(self.size, bool)
        ordinary[: self.text_size] = True
        ordinary[list(self.specials)] = False
        return ordinary

    def codes_to_ids(self, codes: np.ndarray) -> np.ndarray:
        """Returns the token ids of codes, frame by frame.

        Args:
          codes: integers `[frames, n]`, 0 < n ≤ codebooks; column k indexes codebook k.

        Returns:
          int32 ids `[frames · n]`: codebooks 0, 1, …, n−1 of frame 0, then of frame 1, and so on.

        Raises:
          UserError: if n is out of range, or an index is outside its codebook. The message contains
            the position of the index.
        """
        codes = np.asarray(codes)
        count = codes.shape[1]
        if not 0 < count <= self.codebooks:
            raise UserError(f"codes have {count} codebooks, the layout has {self.codebooks}")
        sizes = np.array(self.codebook_sizes[:count], np.int64)
        bad = np.argwhere((codes < 0) | (codes >= sizes))
        if len(bad):
            frame, book = bad[0]
            value, last = codes[frame, book], sizes[book] - 1
            raise UserError(
                f"codes[{frame}, {book}] = {value} is outside codebook {book} (0–{last})"
            )
        return (codes + self.codebook_offsets[:count]).astype(np.int32).reshape(-1)

    def ids_to_codes(self, ids: np.ndarray, codebooks: int) -> np.ndarray:
        """Returns the codes of token ids, uint16 `[frames, codebooks]`; inverts `codes_to_ids`.

        Raises:
          UserError: if a frame is incomplete, or an id is not in the codebook of its column. The
            message contains the position.
        """
        ids = np.asarray(ids, np.int64)
        if len(ids) % codebooks:
            raise UserError(
                f"{len(ids)} audio tokens are not whole frames of {codebooks} tokens: a partial "
                f"frame begins at position {len(ids) - len(ids) % codebooks}"
            )
        codes = ids.reshape(-1, codebooks) - self.codebook_offsets[:codebooks]
        bad = np.argwhere((codes < 0) | (codes >= np.array(self.codebook_sizes[:codebooks])))
        if len(bad):
            frame, book = bad[0]
            position = int(frame) * codebooks + int(book)
            raise UserError(
                f"token {ids[position]} at position {position} is not in codebook {book}"
            )
        return codes.astype(np.uint16)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object; `specials` are ranges [first, last] of consecutive ids."""
        return {
            "text_size": self.text_size,
            "specials": _runs(self.specials),
            "bos": self.bos,
            "eos": self.eos,
            "codebook_sizes": list(self.codebook_sizes),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "VocabularyLayout":
        """Returns the layout from the output of `to_json`."""
        specials = [i for first, last in value["specials"] for i in range(first, last + 1)]
        return cls(
            int(value["text_size"]),
            tuple(specials),
            int(value["bos"]),
            int(value["eos"]),
            tuple(value["codebook_sizes"]),
        )

    @property
    def fingerprint(self) -> str:
        """Hash of the layout, 16 hexadecimal digits; equal layouts have equal fingerprints."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _runs(values: Iterable[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][1] == value - 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return runs
