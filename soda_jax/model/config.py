"""Shapes of the decoder and of its vocabulary, with counts of parameters and FLOPs."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from soda_jax.model.products import compute_dtype
from soda_jax.schema import ModelConfig, parse

# A power of two, so that the rows can be sharded. SODA's 128,260 text and marker rows are padded
# to 128,512, an increase of 0.2%.
ROW_MULTIPLE = 256


class Layout(Protocol):
    """The properties of `soda_jax.tokens.VocabularyLayout` that determine the vocabulary rows."""

    @property
    def audio_base(self) -> int:
        """Number of text and marker ids."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of ids of each codebook; may be empty."""


@dataclasses.dataclass(frozen=True)
class VocabularyBlocks:
    """The two blocks of rows of the embedding and of the head.

    Block 0 has a row for each of the ids `0 … first_rows − 1`, then padding. Block 1, of shape
    `[groups, largest group, d]`, has the rows of the remaining ids. Row numbers count the
    padded rows of block 0 first, then those of the flattened block 1. Padding rows have no id.

    Attributes:
      first_rows: number of ids of block 0 (text and markers).
      groups: sizes of the groups of block 1 (codebooks); may be empty.
    """

    first_rows: int
    groups: tuple[int, ...]

    @classmethod
    def of(cls, layout: Layout) -> "VocabularyBlocks":
        """Returns the blocks of a vocabulary layout: text and markers, then the codebooks."""
        return cls(layout.audio_base, layout.codebook_sizes)

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.first_rows + sum(self.groups)

    @property
    def padded_first(self) -> int:
        """Rows of block 0 including padding, a multiple of 256, or of 8 below 1,024 ids."""
        multiple = ROW_MULTIPLE if self.first_rows >= 1024 else 8
        return -(-self.first_rows // multiple) * multiple

    @property
    def group_rows(self) -> int:
        """Rows of each group including padding, which is the size of the largest group."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """Config of a Qwen3 decoder: the `model` settings of a run and the rows of its vocabulary.

    Attributes:
      vocabulary: rows of embedding and head.
    """

    vocabulary: VocabularyBlocks

    def dtype(self, platform: str, devices: int = 1) -> str:
        """Returns the dtype of activations on these devices, see `products.compute_dtype`."""
        return compute_dtype(self.compute_dtype, platform, devices)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size + self._norm_parameters

    @property
    def _norm_parameters(self) -> int:
        return 2 * self.hidden_size + 2 * self.head_dim

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters of all layers and of the final norm."""
        return self.num_layers * self.layer_parameters + self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters, padding rows not counted."""
        matrices = 1 if self.tie_embeddings else 2
        return self.non_embedding_parameters + matrices * self.vocabulary.size * self.hidden_size

    @property
    def matmul_parameters(self) -> int:
        """Parameters in matrix products: those of the head and of the layers, without norms."""
        layer = self.layer_parameters - self._norm_parameters
        return self.num_layers * layer + self.vocabulary.size * self.hidden_size

    def training_flops_per_token(self, sequence: int, head_rows: float | None = None) -> float:
        """Returns the training FLOPs per token without recomputation, as used for the MFU.

        The matrix products take 6 · `matmul_parameters` FLOPs. The forward pass of attention takes
        4 · heads · head_dim · S / 2 FLOPs per layer, for the causal half of the scores of a window
        of S tokens; forward and backward pass together take three times as many.

        Args:
          sequence: tokens per window.
          head_rows: mean number of logits per token; by default the size of the vocabulary.
        """
        attention = self.num_layers * 4 * self.num_heads * self.head_dim * sequence / 2
        flops = 6.0 * self.matmul_parameters + 3.0 * attention
        if head_rows is not None:
            flops += 6.0 * (head_rows - self.vocabulary.size) * self.hidden_size
        return flops


def decoder_config(model: Any, vocabulary: VocabularyBlocks) -> DecoderConfig:
    """Returns the decoder config for the `model` settings of a run.

    Args:
      model: a `ModelConfig`, or a mapping with its keys.
      vocabulary: rows of embedding and head.

    Raises:
      UserError: for an unknown key or an invalid value.
    """
    fields = vars(parse(ModelConfig, model, "model"))
    return DecoderConfig(**fields, vocabulary=vocabulary)


def decoder_from_metadata(metadata: Mapping[str, Any], layout: Layout) -> DecoderConfig:
    """Returns the decoder config of a checkpoint.

    Args:
      metadata: metadata of the checkpoint.
      layout: vocabulary layout of the checkpoint.

    Raises:
      UserError: if the `model` settings have an unknown key or an invalid value.
    """
    return decoder_config(metadata["config"]["model"], VocabularyBlocks.of(layout))
