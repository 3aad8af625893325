"""Numbers of parameters, which equal the paper's table exactly, and initial weights."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_toys import TINY, make_model

from soda_jax.errors import UserError
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
from soda_jax.tokens.vocabulary import VocabularyLayout

SODA = VocabularyLayout.soda()
BLOCKS = VocabularyBlocks.of(SODA)
TABLE = {
    "soda_135m": (512, 57_034_112, 205_149_568),
    "soda_600m": (1024, 440_467_456, 736_698_368),
    "soda_1_7b": (2048, 1_409_410_048, 2_001_871_872),
    "soda_4b": (2560, 3_633_511_936, 4_374_089_216),
}


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", TABLE)
def test_abstract_model_has_exactly_the_parameters_of_the_paper(name):
    width, layers_and_norm, total = TABLE[name]
    config = importlib.import_module(f"soda_jax.configs.{name}").get_config()
    model = ModelFunctions(decoder_config(config.model.to_dict(), BLOCKS))
    found = dict(model.abstract)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    for matrix in ("embedding", "head"):
        assert found.pop(f"{matrix}_first").shape == (128_512, width)
        assert found.pop(f"{matrix}_groups").shape == (8, 2048, width)
    assert count(found) == layers_and_norm == model.config.non_embedding_parameters
    padding = 2 * (128_512 - 128_260) * width
    assert count(model.abstract) - padding == total == model.config.parameters


def test_tied_model_has_one_matrix_and_no_head():
    config = importlib.import_module("soda_jax.configs.soda_1_7b").get_config()
    config.model.tie_embeddings = True
    model = ModelFunctions(decoder_config(config.model.to_dict(), BLOCKS))
    assert not [name for name in model.abstract if name.startswith("head")]
    # The paper names its models after the layers and one matrix.
    expected = 1_409_410_048 + SODA.size * 2048
    assert model.config.parameters == expected == count(model.abstract) - 252 * 2048


def test_matmul_parameters_count_products_only():
    model = make_model()
    products = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.abstract["layers"])
        if "norm" not in path[-1].key
    ]
    head = TINY.vocabulary.size * TINY.hidden_size
    assert model.config.matmul_parameters == count(products) + head


def test_initial_weights_have_the_deviations_of_the_paper():
    d, heads, hd, ff = 64, 8, 16, 192
    blocks = VocabularyBlocks(1024, (256, 256))
    model = make_model(
        vocabulary=blocks,
        hidden_size=d,
        intermediate_size=ff,
        num_heads=heads,
        num_kv_heads=4,
        head_dim=hd,
    )
    params = jax.jit(lambda: model.init(3))()
    layers = params["layers"]
    deviations = {
        "query": d**-0.5, "key": d**-0.5, "value": d**-0.5, "gate": d**-0.5, "up": d**-0.5,
        "output": (heads * hd) ** -0.5, "down": ff**-0.5,
    }  # fmt: skip
    found = {name: (layers[name], sigma) for name, sigma in deviations.items()}
    for name, sigma in {"embedding": 1 / d, "head": d**-0.5}.items():
        found |= {
            f"{name}_{block}": (params[f"{name}_{block}"], sigma) for block in ("first", "groups")
        }
    truncated = 0.98658  # deviation of a standard normal truncated at ±3
    for name, (value, sigma) in found.items():
        value = np.asarray(value) / sigma
        assert abs(value.std() / truncated - 1) < 0.03, name
        assert abs(value.mean()) < 0.03 and 2.5 < abs(value).max() <= 3.0, name
    norms = [params["final_norm"], *(layers[n] for n in layers if n.endswith("norm"))]
    assert len(norms) == 5 and all((np.asarray(norm) == 1).all() for norm in norms)
    assert set(layers) == {*deviations, "attention_norm", "query_norm", "key_norm", "mlp_norm"}


def test_layers_blocks_and_seeds_have_different_weights():
    model = make_model(vocabulary=VocabularyBlocks(24, (24,)))
    init = jax.jit(model.init, static_argnums=0)
    params, other = init(0), init(1)
    for value in params["layers"].values():
        assert value.shape[0] == TINY.num_layers
    assert not np.array_equal(*params["layers"]["query"])
    assert not np.array_equal(params["layers"]["key"], params["layers"]["value"])
    assert not np.array_equal(params["embedding_first"], params["embedding_groups"][0])
    assert not np.array_equal(params["head_first"], params["embedding_first"])
    assert not np.array_equal(params["layers"]["query"], other["layers"]["query"])
    np.testing.assert_array_equal(params["layers"]["query"], init(0)["layers"]["query"])


def test_rows_map_ids_to_blocks_without_padding():
    blocks = VocabularyBlocks(21, (9, 4, 7))
    assert (blocks.size, blocks.padded_first, blocks.group_rows, blocks.rows) == (41, 24, 9, 51)
    expected = [*range(21), *range(24, 33), *range(33, 37), *range(42, 49)]
    assert blocks.row_of_id.tolist() == expected
    assert np.flatnonzero(blocks.valid_rows).tolist() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "model.num_layers = 0 must be an integer, at least 1"),
        ({"num_heads": 5}, "model.num_heads = 5 is not a multiple of model.num_kv_heads = 4"),
        ({"head_dim": 7}, "model.head_dim = 7 must be even"),
        (
            {"remat": "half"},
            "model.remat = 'half' must be one of none, full, attention, dots, offload",
        ),
        ({"compute_dtype": "float16"}, "model.compute_dtype = 'float16'"),
    ],
)
def test_an_invalid_shape_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        decoder_config(change, BLOCKS)
