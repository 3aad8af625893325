"""Maps parameters to the tensor names and layouts of Transformers' Qwen3, for import and export.

Transformers stores a linear layer as `[outputs, inputs]`, with heads × head_dim as one axis; this
package stores `[inputs…, outputs…]`. Both implementations of the rotary embedding pair dimension i
of a head with i + head_dim / 2, so no dimension has to be permuted.
"""

import math
from collections.abc import Iterator

import numpy as np

from soda_jax.convert.safetensors_folder import TensorFolder
from soda_jax.convert.weights import TABLES, Weights, layer_shapes, row_blocks, tables
from soda_jax.errors import UserError
from soda_jax.model import DecoderConfig

EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_TABLES = dict(zip(TABLES, (EMBEDDING, HEAD), strict=True))
# Name in this package -> name in Transformers after `model.layers.N.`, and the number of leading
# input axes in this package; 0 for norms, which have the same layout in Transformers.
_LAYER = {
    "attention_norm": ("input_layernorm.weight", 0),
    "query": ("self_attn.q_proj.weight", 1),
    "key": ("self_attn.k_proj.weight", 1),
    "value": ("self_attn.v_proj.weight", 1),
    "query_norm": ("self_attn.q_norm.weight", 0),
    "key_norm": ("self_attn.k_norm.weight", 0),
    "output": ("self_attn.o_proj.weight", 2),
    "mlp_norm": ("post_attention_layernorm.weight", 0),
    "gate": ("mlp.gate_proj.weight", 1),
    "up": ("mlp.up_proj.weight", 1),
    "down": ("mlp.down_proj.weight", 1),
}


def tensor_shapes(config: DecoderConfig, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a folder, in the order of the forward pass.

    Args:
      config: decoder config; its vocabulary is not used.
      vocabulary: number of rows of embedding and head.
    """
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (vocabulary, config.hidden_size)}
    ours = layer_shapes(config)
    for number in range(config.num_layers):
        for name, (theirs, inputs) in _LAYER.items():
            sizes = ours[name][inputs:], ours[name][:inputs]
            shape = tuple(map(math.prod, sizes)) if inputs else ours[name]
            found[f"model.layers.{number}.{theirs}"] = shape
    found[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_embeddings:
        found[HEAD] = (vocabulary, config.hidden_size)
    return found


def exported_tensors(weights: Weights) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, f32 values) of every exported tensor, in the order of `tensor_shapes`."""
    config = weights.config

    def table(name: str) -> np.ndarray:
        # In blocks, because a read of the whole table may need a second copy.
        rows = np.empty((config.vocabulary.size, config.hidden_size), np.float32)
        for first, last in row_blocks(len(rows)):
            rows[first:last] = weights.read(name, first, last)
        return rows

    yield EMBEDDING, table("embedding")
    for number in range(config.num_layers):
        layer = weights.layer(number)
        for name, (theirs, inputs) in _LAYER.items():
            values = layer[name]
            if inputs:
                fan_in = math.prod(values.shape[:inputs])
                values = np.ascontiguousarray(values.reshape(fan_in, -1).T)
            yield f"model.layers.{number}.{theirs}", values
    yield FINAL_NORM, weights.read("final_norm", 0, config.hidden_size)
    if "head" in tables(config):
        yield HEAD, table("head")


class HuggingFaceWeights(Weights):
    """Reads the parameters of a Hugging Face folder of a Qwen3 model."""

    def __init__(self, folder: TensorFolder, config: DecoderConfig, vocabulary: int):
        """Checks the names and shapes of the tensors.

        Args:
          folder: the tensors of the folder.
          config: decoder config from the folder's `config.json`; its vocabulary size may differ
            from `vocabulary`.
          vocabulary: number of rows of the folder's embedding and head.

        Raises:
          UserError: if a tensor is missing, unknown, or of another shape, or a tied model has a
            head that differs from its embedding.
        """
        self.config, self._folder = config, folder
        if config.num_layers > len(folder.tensors):  # else a huge list of names would be built
            raise UserError(
                f"{folder.path}: config.json has num_hidden_layers {config.num_layers:,}, but there are "
                f"only {len(folder.tensors):,} tensors; take the config.json of these weights"
            )
        self._shapes = layer_shapes(config)
        expected = tensor_shapes(config, vocabulary)
        # Some tied models are published with the head as a second tensor.
        duplicate = config.tie_embeddings and HEAD in folder.tensors
        if duplicate:
            expected[HEAD] = expected[EMBEDDING]
        folder.check(expected)
        for first, last in row_blocks(vocabulary) if duplicate else ():
            rows = folder.read(EMBEDDING, first, last)
            if not np.array_equal(rows, folder.read(HEAD, first, last)):
                raise UserError(
                    f"{folder.path}: the embeddings are tied in config.json, but {HEAD} differs from "
                    f"{EMBEDDING}; Transformers 5 uses both, older releases only the embedding: set "
                    "tie_word_embeddings to false if the model uses the head"
                )

    def read(self, name: str, first: int, last: int) -> np.ndarray:
        """See `Weights`."""
        if name in TABLES:
            name = EMBEDDING if self.config.tie_embeddings else _TABLES[name]
            return self._folder.read_f32(name, first, last)
        if name == "final_norm":
            return self._folder.read_f32(FINAL_NORM, first, last)
        name = name.removeprefix("layers/")
        theirs, inputs = _LAYER[name]
        found = np.empty((last - first, *self._shapes[name]), np.float32)
        for index, number in enumerate(range(first, last)):
            values = self._folder.read_f32(f"model.layers.{number}.{theirs}")
            found[index] = (values.T if inputs else values).reshape(self._shapes[name])
        return found
