"""Names and layouts of Transformers' Qwen3: the one table that both directions read.

A linear layer is stored there as `[outputs, inputs]`, with heads × head_dim as one axis; ours is
`[inputs…, outputs…]`. Queries and keys pair dimension i with i + head_dim / 2 on both sides, so that no
rotary permutation is needed.
"""

from typing import NamedTuple

import numpy as np

from soda_jax.convert.weights import layer_shapes
from soda_jax.model import DecoderConfig

EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
TABLE_NAMES = {"embedding": EMBEDDING, "head": HEAD}


class Place(NamedTuple):
    """A parameter of a layer over there.

    Attributes:
      name: after `model.layers.N.`.
      inputs: how many of our leading axes are inputs; 0 for the scale of a norm, which stays as it is.
    """

    name: str
    inputs: int


LAYER = {
    "attention_norm": Place("input_layernorm.weight", 0),
    "query": Place("self_attn.q_proj.weight", 1),
    "key": Place("self_attn.k_proj.weight", 1),
    "value": Place("self_attn.v_proj.weight", 1),
    "query_norm": Place("self_attn.q_norm.weight", 0),
    "key_norm": Place("self_attn.k_norm.weight", 0),
    "output": Place("self_attn.o_proj.weight", 2),
    "mlp_norm": Place("post_attention_layernorm.weight", 0),
    "gate": Place("mlp.gate_proj.weight", 1),
    "up": Place("mlp.up_proj.weight", 1),
    "down": Place("mlp.down_proj.weight", 1),
}


def layer_name(number: int, place: Place) -> str:
    """The full name of a tensor of layer `number`."""
    return f"model.layers.{number}.{place.name}"


def outward(ours: np.ndarray, place: Place) -> np.ndarray:
    """Our parameter in the layout over there."""
    if not place.inputs:
        return ours
    fan_in = int(np.prod(ours.shape[: place.inputs]))
    return np.ascontiguousarray(ours.reshape(fan_in, -1).T)


def inward(theirs: np.ndarray, place: Place, shape: tuple[int, ...]) -> np.ndarray:
    """Their tensor in our layout, of our `shape`."""
    if not place.inputs:
        return theirs
    return np.ascontiguousarray(theirs.T).reshape(shape)


def tensor_shapes(config: DecoderConfig, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of a folder and its shape, in the order of the forward pass.

    Args:
      config: the decoder's shape; its own vocabulary is not looked at.
      vocabulary: rows of embedding and head over there.
    """
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (vocabulary, config.hidden_size)}
    ours = layer_shapes(config)
    for number in range(config.num_layers):
        for name, place in LAYER.items():
            shape = ours[name]
            if place.inputs:
                fan_in = int(np.prod(shape[: place.inputs]))
                shape = (int(np.prod(shape)) // fan_in, fan_in)
            found[layer_name(number, place)] = shape
    found[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_embeddings:
        found[HEAD] = (vocabulary, config.hidden_size)
    return found
