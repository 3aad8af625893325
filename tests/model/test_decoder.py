"""The decoder: segments are independent (invariant 4), remat, padding rows and the KV cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_toys import (
    TINY,
    VOCABULARY,
    assert_trees_close,
    make_model,
    packed,
    plain_loss,
    random_tokens,
)
from toys import random_params

from soda_jax.errors import UserError
from soda_jax.model import decoding
from soda_jax.model.attention import attend, packed_mask
from soda_jax.model.placement import OneDevice
from soda_jax.model.remat import POLICIES

# Uneven segments, one of a single token at the start, in the middle and at the end.
SEGMENTS, POSITIONS = packed([[5, 1, 9, 1], [1, 13, 2], [16]])
SHAPE = SEGMENTS.shape


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


@pytest.fixture(scope="module")
def run(model):
    """Returns the jitted function (params, tokens, segments, positions) → hidden."""
    return jax.jit(lambda params, *inputs: model.bind(params)(*inputs))


@pytest.fixture(scope="module")
def gradients(model):
    """Returns gradients of a random function of the hidden states where `keep` is True."""
    direction = jnp.asarray(
        np.random.default_rng(5).normal(size=(*SHAPE, TINY.hidden_size)), jnp.float32
    )

    def value(params, tokens, keep):
        hidden = model.bind(params)(tokens, SEGMENTS, POSITIONS)
        return jnp.sum(jnp.where(keep[..., None], hidden * direction, 0.0))

    return jax.jit(jax.grad(value))


@pytest.mark.parametrize(("row", "segment"), [(0, 1), (0, 2), (0, 3), (1, 2)])
def test_invariant_4_other_segments_change_neither_hidden_states_nor_gradients(
    params, run, gradients, row, segment
):
    tokens, others = random_tokens(0, SHAPE), random_tokens(1, SHAPE)
    mine = np.zeros(SHAPE, bool)
    mine[row] = SEGMENTS[row] == segment
    changed = np.where(mine, tokens, others)
    before = np.asarray(run(params, tokens, SEGMENTS, POSITIONS))
    after = np.asarray(run(params, changed, SEGMENTS, POSITIONS))
    np.testing.assert_array_equal(before[mine], after[mine])
    assert (before[~mine] != after[~mine]).any(axis=-1).mean() > 0.9
    left, right = gradients(params, tokens, mine), gradients(params, changed, mine)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(left))
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def test_invariant_4_a_packed_segment_equals_a_window_of_only_that_document(params, run):
    tokens = random_tokens(2, SHAPE)
    whole = np.asarray(run(params, tokens, SEGMENTS, POSITIONS))
    for row, first, length in ((0, 6, 9), (1, 1, 13), (0, 15, 1)):
        single = np.zeros(SHAPE, np.int32)
        single[:, :length] = tokens[row, first : first + length]
        inputs = single, *packed([[SHAPE[1]]] * SHAPE[0])
        hidden = np.asarray(run(params, *inputs))[0, :length]
        np.testing.assert_allclose(whole[row, first : first + length], hidden, atol=2e-6)


def test_no_token_attends_to_a_later_one(params, run):
    tokens = random_tokens(3, SHAPE)
    before = np.asarray(run(params, tokens, SEGMENTS, POSITIONS))
    for position in (3, 10, 15):
        changed = tokens.copy()
        changed[:, position] = (tokens[:, position] + 1) % VOCABULARY.size
        after = np.asarray(run(params, changed, SEGMENTS, POSITIONS))
        np.testing.assert_array_equal(before[:, :position], after[:, :position])
        assert (before[:, position] != after[:, position]).any(axis=-1).all()
    # Every token of a segment attends to the first one.
    changed = tokens.copy()
    changed[2, 0] = (tokens[2, 0] + 1) % VOCABULARY.size
    after = np.asarray(run(params, changed, SEGMENTS, POSITIONS))
    assert (before[2] != after[2]).any(axis=-1).all()


def test_packed_mask_is_causal_within_segments():
    found = np.asarray(packed_mask(jnp.asarray(SEGMENTS)))
    for row in range(SHAPE[0]):
        for query in range(SHAPE[1]):
            for key in range(SHAPE[1]):
                same = SEGMENTS[row, query] == SEGMENTS[row, key]
                assert found[row, query, key] == (same and key <= query)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_attention_equals_repeated_keys(kv_heads):
    rng = np.random.default_rng(4)
    query = rng.normal(size=(*SHAPE, 6, 8)).astype(np.float32)
    key, value = (rng.normal(size=(*SHAPE, kv_heads, 8)).astype(np.float32) for _ in range(2))
    mask = np.asarray(packed_mask(jnp.asarray(SEGMENTS)))
    # Head h attends with kv head h // (heads / kv_heads); softmax by its definition, in f64.
    keys, values = (np.repeat(x, 6 // kv_heads, axis=2).astype(float) for x in (key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query.astype(float), keys) / np.sqrt(8)
    weights = np.exp(scores) * mask[:, None]
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), values)
    found = attend(query, key, value, jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, atol=2e-6)

    def summed(*arrays):
        return jnp.sum(attend(*arrays, jnp.asarray(mask)) * expected.astype(np.float32))

    def repeated(query, key, value):
        keys, values = (jnp.repeat(x, 6 // kv_heads, axis=2) for x in (key, value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys) / np.sqrt(8)
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, values)
        return jnp.sum(mixed * expected.astype(np.float32))

    found, wanted = (jax.grad(f, (0, 1, 2))(query, key, value) for f in (summed, repeated))
    assert_trees_close(found, wanted, rtol=1e-4, atol=1e-5)


@functools.lru_cache
def loss_and_gradients_function(**changes):
    model = make_model(**changes)

    def loss(params, tokens):
        decoder = model.bind(params)
        hidden = decoder(tokens, SEGMENTS, POSITIONS).astype(jnp.float32)
        rows = jnp.asarray(VOCABULARY.row_of_id)[jnp.roll(tokens, -1, 1)]
        return plain_loss(
            hidden, decoder.head_blocks(), VOCABULARY.valid_rows, rows, jnp.ones(SHAPE), 1e-4
        )[0]

    return jax.jit(jax.value_and_grad(loss))


def loss_and_gradients(params, tokens, **changes):
    return loss_and_gradients_function(**changes)(params, tokens)


@pytest.fixture(scope="module")
def plain(params):
    return loss_and_gradients(params, random_tokens(6, SHAPE))


@pytest.mark.parametrize(
    ("remat", "unroll"), [(policy, 1) for policy in POLICIES if policy != "none"] + [("none", 2)]
)
def test_remat_and_unroll_change_no_loss_and_no_gradient(params, plain, remat, unroll):
    found = loss_and_gradients(params, random_tokens(6, SHAPE), remat=remat, unroll=unroll)
    assert_trees_close(found, plain, rtol=1e-5, atol=2e-5)


def test_bf16_compute_gives_f32_gradients_close_to_those_of_f32(params, plain):
    loss, gradients = loss_and_gradients(
        params, random_tokens(6, SHAPE), compute_dtype="bfloat16", remat="full"
    )
    model = make_model(compute_dtype="bfloat16")
    hidden = jax.eval_shape(
        lambda params: model.bind(params)(SEGMENTS, SEGMENTS, POSITIONS), params
    )
    assert hidden.dtype == jnp.bfloat16
    assert abs(float(loss) / float(plain[0]) - 1) < 0.01
    for found, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(plain[1]), strict=True):
        assert found.dtype == jnp.float32
        cosine = jnp.vdot(found, wanted) / (jnp.linalg.norm(found) * jnp.linalg.norm(wanted))
        assert float(cosine) > 0.99


@pytest.mark.parametrize("tied", [False, True])
def test_padding_rows_get_no_probability_and_no_gradient(model, params, tied):
    tokens = random_tokens(7, SHAPE)
    valid = VOCABULARY.valid_rows
    params, changes = dict(params), {"tie_embeddings": True} if tied else {}
    if tied:
        del params["head_first"], params["head_groups"]
    loss, gradients = loss_and_gradients(params, tokens, **changes)
    # Huge padding rows would have all the probability if they were not masked.
    huge = dict(params)
    matrices = ("embedding",) if tied else ("embedding", "head")
    for matrix in matrices:
        rows = np.concatenate(
            [
                np.asarray(gradients[f"{matrix}_{block}"]).reshape(-1, 16)
                for block in ("first", "groups")
            ]
        )
        assert not rows[~valid].any() and np.abs(rows[valid]).sum(-1).any()
        if matrix == matrices[-1]:  # each row of the head has a gradient
            assert (np.abs(rows[valid]).sum(-1) > 0).all()
        padded = np.where(valid[:, None], 0.0, np.full((51, 16), 1e4, np.float32))
        for block, part in zip(("first", "groups"), np.split(padded, [24]), strict=True):
            name = f"{matrix}_{block}"
            huge[name] = params[name] + part.reshape(params[name].shape)
    again, gradients_again = loss_and_gradients(huge, tokens, **changes)
    assert float(again) == pytest.approx(float(loss), rel=1e-6)
    assert_trees_close(gradients_again, gradients, rtol=1e-4, atol=1e-5)


def test_logits_are_those_of_the_ids_without_padding(model, params):
    hidden = jnp.asarray(np.random.default_rng(8).normal(size=(2, 3, 16)), jnp.float32)
    decoder = model.bind(params)
    rows = np.concatenate(
        [np.asarray(block).reshape(-1, block.shape[-1]) for block in decoder.head_blocks()]
    )
    expected = np.asarray(hidden) @ rows[VOCABULARY.row_of_id].T
    found = decoder.logits(hidden)
    assert found.shape == (2, 3, 41) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_id_has_a_separate_embedding_row(model, params):
    ids = jnp.arange(VOCABULARY.size)[None]
    first, groups = np.asarray(params["embedding_first"]), np.asarray(params["embedding_groups"])
    expected = [*first[:21], *groups[0], *groups[1, :4], *groups[2, :7]]
    np.testing.assert_array_equal(model.bind(params).embed(ids)[0], expected)


def test_a_vocabulary_without_groups_has_only_text():
    blocks = dataclasses.replace(VOCABULARY, groups=())
    model = make_model(vocabulary=blocks, num_layers=1)
    tokens = random_tokens(9, SHAPE, blocks)

    def logits():
        decoder = model.bind(random_params(model))
        return decoder.logits(decoder(tokens, SEGMENTS, POSITIONS))

    found = jax.jit(logits)()
    assert found.shape == (*SHAPE, 21) and bool(jnp.isfinite(found).all())


@pytest.mark.parametrize("pairs", [0, 64])
@pytest.mark.parametrize("tied", [False, True])
def test_decoding_with_a_cache_equals_the_forward_pass_of_the_window(monkeypatch, pairs, tied):
    monkeypatch.setattr(decoding, "_MOST_PAIRS", pairs)  # both forms of attention
    model = make_model(tie_embeddings=tied)
    params = random_params(model)
    tokens = random_tokens(10, SHAPE)
    segments, positions = packed([[SHAPE[1]]] * SHAPE[0])
    whole = np.asarray(model.bind(params)(tokens, segments, positions))
    weights = decoding.decoding_weights(model.config, params, "float32")
    hidden, caches = decoding.prefill(model.config, weights, tokens[:, :8], jnp.float32)
    np.testing.assert_allclose(hidden, whole[:, :8], atol=5e-6)
    room = SHAPE[1] - 8
    caches = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0))), caches)
    step = jax.jit(lambda *inputs: decoding.decode(model.config, weights, *inputs, jnp.float32))
    for position in range(8, SHAPE[1]):
        at = jnp.full(SHAPE[0], position)
        hidden, caches = step(tokens[:, position], at, caches)
        np.testing.assert_allclose(hidden, whole[:, position], atol=5e-6)


def test_int8_weights_are_within_half_a_step_of_each_output_channel():
    model = make_model()
    params = random_params(model)
    tpu = OneDevice("tpu")  # CPUs store matrices in another form, see test_output_major.py
    weights = decoding.decoding_weights(model.config, params, "int8", tpu)
    for name, contracted in (("query", (0,)), ("output", (0, 1)), ("down", (0,))):
        exact, found = np.asarray(params["layers"][name][1]), weights["layers"][1][name]
        step = np.expand_dims(np.asarray(found.scale), contracted)
        assert found.values.dtype == np.int8 and step.ndim == exact.ndim
        np.testing.assert_allclose(found.values * step, exact, atol=0.5001 * step.max())
        assert np.abs(exact).max(contracted) == pytest.approx(
            127 * np.asarray(found.scale), rel=1e-6
        )
    assert weights["layers"][0]["query_norm"].dtype == np.float32
    embedded = decoding.embed(model.config, weights, jnp.arange(VOCABULARY.size), jnp.float32)
    exact = model.bind(params).embed(jnp.arange(VOCABULARY.size)[None])[0]
    np.testing.assert_allclose(embedded, exact, atol=0.5001 / 127 * np.abs(exact).max())


@pytest.mark.parametrize("dtype", decoding.DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_rounded_parameters_have_the_values_of_the_decoding_weights(dtype, tied):
    model = make_model(tie_embeddings=tied)
    params = random_params(model)
    rounded = decoding.rounded_params(params, dtype)
    weights = decoding.decoding_weights(model.config, params, dtype, OneDevice("tpu"))
    again = decoding.decoding_weights(model.config, rounded, dtype, OneDevice("tpu"))
    for one, other in zip(jax.tree.leaves(weights), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(
            np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=1e-6
        )
    assert jax.tree.map(jnp.shape, rounded) == jax.tree.map(jnp.shape, params)
    changed = {
        name: bool((rounded[name] != params[name]).any()) for name in params if name != "layers"
    }
    assert changed == {name: dtype != "float32" and "norm" not in name for name in changed}
    for name, array in rounded["layers"].items():
        same = bool((array == params["layers"][name]).all())
        assert same == (dtype == "float32" or name.endswith("norm")), name


def test_an_unknown_dtype_is_refused(model, params):
    with pytest.raises(UserError, match="dtype 'int4' is unknown: use one of float32, bfloat16"):
        decoding.decoding_weights(model.config, params, "int4")
