"""Compares `LiveWeights` on any mesh with the parameters, bit for bit."""

import jax
import numpy as np
from toys import SHAPE, random_params

from soda_jax.convert.hook import LiveWeights
from soda_jax.model import DecoderConfig, ModelFunctions, VocabularyBlocks
from soda_jax.parallel import mesh, rules

# 44 text ids in 48 rows; codebooks of unequal sizes, so ids and rows differ.
VOCABULARY = VocabularyBlocks(44, (16, 6, 9))


def make_model(**changes) -> ModelFunctions:
    return ModelFunctions(
        DecoderConfig(vocabulary=VOCABULARY, intermediate_size=32, **SHAPE | changes)
    )


def check_weights(axes: dict[str, int], devices=None, **changes) -> LiveWeights:
    """Asserts that all weights on a mesh equal the parameters; called by every process."""
    model = make_model(**changes)
    where = mesh.make_mesh(axes, devices)
    params = jax.tree.map(np.array, random_params(model))
    # A sum with the zeros of other devices would lose the sign.
    for array in (params["embedding_first"], params["embedding_groups"], params["layers"]["gate"]):
        array[..., ::3] = -0.0
    placed = jax.tree.map(
        lambda array, names: jax.make_array_from_callback(
            array.shape, rules.sharding(where, names, array.shape), array.__getitem__
        ),
        params,
        model.axes,
    )
    weights = LiveWeights(placed, model.config, where)
    assert weights.config is model.config
    for number in range(model.config.num_layers):
        layer = weights.layer(number)
        assert layer.keys() == params["layers"].keys()
        for name, array in layer.items():
            same_bits(array, params["layers"][name][number])
    for table in ("embedding", "head"):
        name = "embedding" if model.config.tie_embeddings else table
        parts = [params[f"{name}_first"], *params[f"{name}_groups"]]
        sizes = (VOCABULARY.first_rows, *VOCABULARY.groups)
        by_id = np.concatenate([part[:size] for part, size in zip(parts, sizes, strict=True)])
        assert len(by_id) == VOCABULARY.size == 75
        for first, last in ((0, 75), (3, 20), (40, 50), (44, 75), (58, 62), (74, 75), (5, 5)):
            same_bits(weights.read(table, first, last), by_id[first:last])
    same_bits(weights.read("final_norm", 0, SHAPE["hidden_size"]), params["final_norm"])
    return weights


def same_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    assert isinstance(found, np.ndarray) and found.dtype == wanted.dtype == np.float32
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
