"""Shape of a decoder and of its vocabulary blocks."""

import dataclasses
import functools

import numpy as np

from soda_jax.errors import UserError
from soda_jax.model.remat import POLICIES

# 128,260 text and marker rows become 128,512: the largest power of two that pads SODA by under 0.2%.
ROW_MULTIPLE = 256


@dataclasses.dataclass(frozen=True)
class VocabularyBlocks:
    """The two blocks of rows of the embedding and of the head.

    Block 0 holds ids `0 … first_rows − 1` and is padded; block 1 holds the groups that follow, one
    after the other, as `[groups, largest group, d]`. A *row* counts through block 0 with its padding,
    then through block 1 flattened; the padding rows belong to no id.

    Attributes:
      first_rows: number of ids of block 0 (text and markers).
      groups: sizes of the groups of block 1 (codebooks); may be empty.
    """

    first_rows: int
    groups: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.first_rows + sum(self.groups)

    @property
    def padded_first(self) -> int:
        """Rows of block 0 with padding: a multiple of 256 from 1,024 rows on, else of 8."""
        multiple = ROW_MULTIPLE if self.first_rows >= 1024 else 8
        return -(-self.first_rows // multiple) * multiple

    @property
    def group_rows(self) -> int:
        """Rows of a group with padding: the size of the largest group."""
        return max(self.groups, default=0)

    @property
    def rows(self) -> int:
        """Rows of both blocks, padding included."""
        return self.padded_first + len(self.groups) * self.group_rows

    @functools.cached_property
    def row_of_id(self) -> np.ndarray:
        """The row of every id, int32 `[size]`."""
        parts = [np.arange(self.first_rows)]
        for number, size in enumerate(self.groups):
            parts.append(self.padded_first + number * self.group_rows + np.arange(size))
        return np.concatenate(parts).astype(np.int32)

    @functools.cached_property
    def valid_rows(self) -> np.ndarray:
        """True for the rows that are not padding, bool `[rows]`."""
        valid = np.zeros(self.rows, bool)
        valid[self.row_of_id] = True
        return valid

    @functools.cached_property
    def valid_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """`valid_rows` of each block, bool `[padded_first]` and `[groups, group_rows]`."""
        first, groups = np.split(self.valid_rows, [self.padded_first])
        return first, groups.reshape(len(self.groups), self.group_rows)


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary positions with Llama-3 scaling (factor 1 switches the scaling off).

    Attributes:
      theta: base of the frequencies.
      factor, low, high, original_length: the scaling of `rope.frequencies`.
    """

    theta: float = 500_000.0
    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A Qwen3 decoder.

    Attributes:
      vocabulary: rows of embedding and head.
      layers, width, mlp_width, heads, kv_heads, head_dim: the shape.
      tied: whether the embedding serves as the head.
      norm_eps: epsilon of every RMSNorm.
      rope: rotary positions.
      compute_dtype: "bfloat16" or "float32", the type of activations; parameters are f32.
      remat: what the backward pass keeps, see `remat.checkpointed`.
      attention: the backend, see `attention.packed_attention`.
      unroll: layers per iteration of the scan over layers.
    """

    vocabulary: VocabularyBlocks
    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False
    norm_eps: float = 1e-5
    rope: RopeConfig = RopeConfig()
    compute_dtype: str = "bfloat16"
    remat: str = "full"
    attention: str = "auto"
    unroll: int = 1

    def __post_init__(self) -> None:
        for name in ("layers", "width", "mlp_width", "heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} = {getattr(self, name)} must be at least 1")
        if self.heads % self.kv_heads:
            raise UserError(
                f"model.heads = {self.heads} is not a multiple of model.kv_heads = {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim = {self.head_dim} must be even, for rotary positions")
        if self.remat not in POLICIES:
            names = ", ".join(POLICIES)
            raise UserError(f"model.remat = {self.remat!r} is unknown: one of {names}")
        if self.compute_dtype not in ("bfloat16", "float32"):
            raise UserError(f"model.compute_dtype = {self.compute_dtype!r}: bfloat16 or float32")

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.width * self.mlp_width + 2 * self.width + 2 * self.head_dim

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters of all layers and of the final norm."""
        return self.layers * self.layer_parameters + self.width

    @property
    def parameters(self) -> int:
        """All parameters, padding rows not counted."""
        matrices = 1 if self.tied else 2
        return self.non_embedding_parameters + matrices * self.vocabulary.size * self.width

    @property
    def matmul_parameters(self) -> int:
        """Parameters that take part in matrix products: layers and head, no norms, no embedding gather."""
        norms = 2 * self.width + 2 * self.head_dim
        return self.layers * (self.layer_parameters - norms) + self.vocabulary.size * self.width
