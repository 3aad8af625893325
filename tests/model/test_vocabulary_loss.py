"""Invariants 5 and 6: the chunked loss equals the plain one and never materializes all logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_toys import TINY, VOCABULARY, assert_trees_close, plain_loss
from toys import random_params

from soda_jax.model import ModelFunctions, VocabularyBlocks, full_loss
from soda_jax.model.loss import (
    CHUNKS,
    LossSettings,
    chunk_tokens,
    class_sums,
    linear_cross_entropy,
)
from soda_jax.model.placement import OneDevice
from soda_jax.parallel.mesh import make_mesh
from soda_jax.parallel.placement import OnMesh

BATCH, SEQUENCE, WIDTH = 4, 12, 16
Z_WEIGHT = 0.05


def head_shapes(vocabulary):
    groups = (len(vocabulary.groups), vocabulary.group_rows, WIDTH)
    return (1, vocabulary.padded_first, WIDTH), groups


@pytest.fixture(scope="module")
def inputs():
    """Hidden states, two head blocks with padding rows, targets, weights."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(BATCH, SEQUENCE, WIDTH)).astype(np.float32)
    shapes = head_shapes(VOCABULARY)
    blocks = tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)
    targets = VOCABULARY.row_of_id[rng.integers(0, VOCABULARY.size, (BATCH, SEQUENCE))]
    weights = (rng.random((BATCH, SEQUENCE)) < 0.6).astype(np.float32)
    weights[1] = 0.0  # a row without loss
    return hidden, blocks, targets, weights


def chunked(inputs, chunk, axes=None, z_weight=Z_WEIGHT):
    hidden, blocks, targets, weights = inputs
    placement = OnMesh(make_mesh(axes)) if axes else OneDevice()
    settings = LossSettings(VOCABULARY, z_weight, chunk, placement)

    def total(hidden, blocks):
        found = linear_cross_entropy(settings, hidden, blocks, targets, weights)
        return 3.0 * found[0], found  # the factor shows that the cotangent is used

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, blocks)


def plain(inputs, z_weight=Z_WEIGHT):
    hidden, blocks, targets, weights = inputs

    def total(hidden, blocks):
        found = plain_loss(hidden, blocks, VOCABULARY.valid_rows, targets, weights, z_weight)
        return 3.0 * found[0], found

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, blocks)


@pytest.fixture(scope="module")
def expected(inputs):
    return plain(inputs)


@pytest.mark.parametrize(
    ("chunk", "axes"),
    [
        (1, None),
        (8, None),
        (20, None),
        (7, None),  # 7 chunks of 7 tokens for 48: the last one is padded
        (11, None),
        (47, None),
        (10_000, None),
        (5, {"data": 2, "tensor": 4}),  # 5 chunks of 5 for 24 tokens of a device
        (5, {"sequence": 2, "fsdp": 2, "tensor": 2}),
        (7, {"tensor": 8}),
        (2, {"data": 2, "sequence": 2, "tensor": 2}),
        (100, {"fsdp": 4, "tensor": 2}),
        (4, {"tensor": 8}),  # the rows of a codebook do not divide: that block is replicated
    ],
)
def test_invariant_6_chunked_loss_and_gradients_equal_the_plain_ones(inputs, expected, chunk, axes):
    ((_, found), gradients), ((_, wanted), exact) = chunked(inputs, chunk, axes), expected
    for name, a, b in zip(("total", "nll", "log_z"), found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6, err_msg=name)
    assert_trees_close(gradients, exact, rtol=2e-5, atol=2e-6)
    d_hidden, d_blocks = gradients
    masked = inputs[3] == 0
    assert not np.asarray(d_hidden)[masked].any() and np.asarray(d_hidden)[~masked].any()
    d_rows = np.concatenate([d.reshape(-1, WIDTH) for d in d_blocks])
    assert not d_rows[~VOCABULARY.valid_rows].any()


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_of_only_text_has_a_head_of_one_block(tied):
    vocabulary = VocabularyBlocks(21, ())
    model = ModelFunctions(dataclasses.replace(TINY, vocabulary=vocabulary, tie_embeddings=tied))
    decoder = model.bind(random_params(model))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 21, (2, 6)), jnp.int32)
    segments_and_positions = (jnp.ones((2, 6), jnp.int32), jnp.broadcast_to(jnp.arange(6), (2, 6)))
    hidden, blocks = decoder(tokens, *segments_and_positions), decoder.head_blocks()
    settings = LossSettings(vocabulary, chunk=4)
    _, nll, _ = linear_cross_entropy(settings, hidden, blocks, tokens, jnp.ones((2, 6)))
    wanted = -jax.nn.log_softmax(decoder.logits(hidden))
    picked = jnp.take_along_axis(wanted, tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(nll, picked, rtol=1e-5)


@pytest.mark.parametrize("tile", [1, 5, 8, 2048])
@pytest.mark.parametrize("axes", [None, {"tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_a_loss_without_gradients_reads_the_head_in_tiles(
    inputs, expected, monkeypatch, tile, axes
):
    monkeypatch.setattr(full_loss, "_TILE", tile)
    hidden, blocks, targets, weights = inputs
    devices = jax.devices()[: np.prod(list(axes.values()))] if axes else None
    placement = OnMesh(make_mesh(axes, devices)) if axes else OneDevice()
    settings = LossSettings(VOCABULARY, Z_WEIGHT, 7, placement)
    loss = jax.jit(lambda h, b: linear_cross_entropy(settings, h, b, targets, weights))
    found = loss(hidden, blocks)
    (_, (total, nll, log_z)), _ = expected
    np.testing.assert_allclose(found[0], total, rtol=1e-5)
    np.testing.assert_allclose(found[1], nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[2], log_z, rtol=1e-5)
    broken = hidden.copy()
    broken[2, 3, 1] = np.nan
    found = loss(broken, blocks)[1]
    assert np.isnan(found[2, 3]) and np.isfinite(found).sum() == found.size - 1


def test_invariant_6_z_loss_is_part_of_total_and_gradient(inputs, expected):
    without = chunked(inputs, 8, z_weight=0.0)
    assert_trees_close(without, plain(inputs, 0.0), rtol=2e-5, atol=2e-6)
    (total, (_, _, log_z)), (d_hidden, _) = expected
    extra = 3.0 * Z_WEIGHT * np.sum(inputs[3] * np.asarray(log_z) ** 2)
    assert float(total - without[0][0]) == pytest.approx(extra, rel=1e-5)
    assert np.abs(np.asarray(d_hidden) - np.asarray(without[1][0])).max() > 1e-2


def test_invariant_6_bf16_hidden_states_give_the_loss_of_their_rounded_products(inputs):
    hidden, blocks, targets, weights = inputs
    low = jnp.asarray(hidden, jnp.bfloat16)
    (_, found), (d_hidden, d_blocks) = chunked((low, blocks, targets, weights), 8)
    rounded = tuple(np.asarray(jnp.asarray(b, jnp.bfloat16), np.float32) for b in blocks)
    (_, wanted), expected = plain((np.asarray(low, np.float32), rounded, targets, weights))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert d_hidden.dtype == jnp.bfloat16 and all(b.dtype == jnp.float32 for b in d_blocks)
    assert_trees_close(d_blocks, expected[1], rtol=0.05, atol=0.05)


def sizes_in(jaxpr) -> list[int]:
    """Returns the number of elements of every array that a jaxpr and its inner jaxprs create."""
    found = []
    for equation in jaxpr.eqns:
        found += [int(np.prod(v.aval.shape)) for v in equation.outvars]
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, jax.extend.core.ClosedJaxpr):
                    found += sizes_in(inner.jaxpr)
                elif isinstance(inner, jax.extend.core.Jaxpr):
                    found += sizes_in(inner)
    return found


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_a_chunk_of_0_is_that_of_the_platform_and_any_other_is_itself(platform):
    assert chunk_tokens(0, platform) == CHUNKS[platform] > 0
    assert chunk_tokens(77, platform) == 77


def test_invariant_6_a_chunk_of_0_bounds_the_logits_by_the_chunk_of_the_platform():
    tokens = 4 * CHUNKS["cpu"]
    hidden = jax.ShapeDtypeStruct((2, tokens // 2, WIDTH), jnp.float32)
    blocks = tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in head_shapes(LARGE))
    targets, weights = (jax.ShapeDtypeStruct((2, tokens // 2), kind) for kind in (jnp.int32, jnp.float32))  # fmt: skip
    settings = LossSettings(LARGE, 1e-4)

    def total(hidden, blocks, targets, weights):
        return linear_cross_entropy(settings, hidden, blocks, targets, weights)[0]

    gradient = jax.make_jaxpr(jax.grad(total, (0, 1)))(hidden, blocks, targets, weights)
    assert max(sizes_in(gradient.jaxpr)) == CHUNKS["cpu"] * LARGE.padded_first


def scan_lengths(jaxpr) -> list[int]:
    """Returns the number of steps of every scan in a jaxpr and its inner jaxprs."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            found.append(equation.params["length"])
        for value in equation.params.values():
            if isinstance(value, jax.extend.core.ClosedJaxpr):
                found += scan_lengths(value.jaxpr)
    return found


@pytest.mark.parametrize(
    ("batch", "sequence", "chunks", "length"),
    [
        (1, 127, 2, 64),  # a prime
        (8, 1021, 128, 64),
        (1, 8191, 128, 64),  # a prime
        (8, 1024, 128, 64),  # nothing to pad
        (1, 65, 2, 33),
        (3, 50, 3, 50),
    ],
)
def test_tokens_without_a_divisor_need_no_more_chunks_than_others(batch, sequence, chunks, length):
    gradient, arguments = large_gradient(batch, sequence, True)
    jaxpr = jax.make_jaxpr(gradient)(*arguments).jaxpr
    assert scan_lengths(jaxpr) == [chunks]
    assert max(sizes_in(jaxpr)) == max(length * LARGE.padded_first, batch * sequence * WIDTH)


def test_invariant_6_a_prime_number_of_tokens_has_the_plain_loss_and_gradient():
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(1, 127, WIDTH)).astype(np.float32)
    blocks = tuple(rng.normal(size=s).astype(np.float32) for s in head_shapes(VOCABULARY))
    targets = VOCABULARY.row_of_id[rng.integers(0, VOCABULARY.size, (1, 127))]
    weights = np.ones((1, 127), np.float32)  # the last token counts, padding after it does not
    inputs = hidden, blocks, targets, weights
    assert_trees_close(chunked(inputs, 64), plain(inputs), rtol=2e-5, atol=2e-6)


LARGE = VocabularyBlocks(3000, (512, 512))
CHUNK = 64


def large_gradient(batch, sequence, with_chunks):
    """Returns the gradient function of this size and abstract arguments for it."""
    abstract = jax.ShapeDtypeStruct
    hidden = abstract((batch, sequence, WIDTH), jnp.float32)
    blocks = tuple(abstract(shape, jnp.float32) for shape in head_shapes(LARGE))
    targets = abstract((batch, sequence), jnp.int32)
    weights = abstract((batch, sequence), jnp.float32)
    settings = LossSettings(LARGE, 1e-4, CHUNK)

    def total(hidden, blocks, targets, weights):
        if with_chunks:
            return linear_cross_entropy(settings, hidden, blocks, targets, weights)[0]
        return plain_loss(hidden, blocks, LARGE.valid_rows, targets, weights, 1e-4)[0]

    return jax.grad(total, (0, 1)), (hidden, blocks, targets, weights)


@functools.lru_cache
def temporary_bytes(batch, sequence, with_chunks):
    gradient, arguments = large_gradient(batch, sequence, with_chunks)
    return jax.jit(gradient).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_invariant_6_no_array_of_the_program_holds_all_logits():
    for batch, sequence in ((8, 64), (16, 128)):
        all_logits = batch * sequence * LARGE.size
        for with_chunks in (True, False):
            gradient, arguments = large_gradient(batch, sequence, with_chunks)
            largest = max(sizes_in(jax.make_jaxpr(gradient)(*arguments).jaxpr))
            assert (largest < all_logits / 4) == with_chunks
            if with_chunks:
                assert largest == CHUNK * LARGE.padded_first


def test_invariant_6_memory_is_bounded_by_the_chunk_and_constant_in_batch_and_sequence():
    small, large = (8, 64), (16, 256)
    chunk_logits = CHUNK * LARGE.rows * 4
    head_gradient = LARGE.rows * WIDTH * 4
    tokens = large[0] * large[1] - small[0] * small[1]
    few, many = (temporary_bytes(*size, True) for size in (small, large))
    assert few <= head_gradient + 2 * chunk_logits
    # Only arrays of the size of the hidden states grow, also if the last chunk is padded.
    assert many - few <= 4 * tokens * WIDTH * 4
    assert temporary_bytes(16, 257, True) - few <= 4 * (tokens + 16) * WIDTH * 4
    plain_few, plain_many = (temporary_bytes(*size, False) for size in (small, large))
    assert plain_many - plain_few >= tokens * LARGE.size * 4
    assert few < plain_few


def test_invariant_5_sums_by_class_and_source_equal_a_direct_computation():
    rng = np.random.default_rng(1)
    shape, classes, sources = (5, 40), 6, 3
    nll = rng.random(shape).astype(np.float32)
    weights = (rng.random(shape) < 0.7).astype(np.float32)
    of_target = rng.integers(0, classes, shape).astype(np.int8)
    of_row = np.array([0, 2, 0, 2, 0], np.int32)  # source 1 does not occur
    found = jax.jit(class_sums, static_argnums=(4, 5))(
        nll, weights, of_target, of_row, classes, sources
    )
    assert found["nll"].shape == found["count"].shape == (sources, classes)
    for source in range(sources):
        for number in range(classes):
            hit = (of_target == number) & (of_row == source)[:, None] & (weights > 0)
            assert float(found["count"][source, number]) == hit.sum()
            assert float(found["nll"][source, number]) == pytest.approx(nll[hit].sum(), rel=1e-5)
    # The token-weighted mean of the classes is the scalar.
    mean = found["nll"].sum() / found["count"].sum()
    assert float(mean) == pytest.approx((nll * weights).sum() / weights.sum(), rel=1e-5)
