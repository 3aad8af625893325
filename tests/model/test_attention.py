"""Invariant 4: every attention backend equals the plain one and stays within segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soda_jax.errors import UserError
from soda_jax.model.attention import attend, backend_for, packed_attention, packed_mask
from soda_jax.model.attention.mosaic import key_ranges
from soda_jax.model.attention.splash import splash_attention
from soda_jax.model.attention.triton import triton_attention
from soda_jax.model.placement import OneDevice
from soda_jax.parallel.mesh import make_mesh
from soda_jax.parallel.placement import OnMesh

BATCH, LENGTH, HEADS, GROUPS, HEAD_DIM = 2, 256, 4, 2, 16


@pytest.fixture(scope="module")
def arrays():
    """Returns segments of uneven lengths, one of a single token; query, key, value and a cotangent."""
    rng = np.random.default_rng(0)
    ends = [[1, 100, 129, 256], [7, 200, 250, 256]]
    segments = np.array([np.searchsorted(row, np.arange(LENGTH), side="right") for row in ends])

    def normal(heads):
        return rng.normal(size=(BATCH, LENGTH, heads, HEAD_DIM)).astype(np.float32)

    return segments.astype(np.int32), normal(HEADS), normal(GROUPS), normal(GROUPS), normal(HEADS)


def values_and_gradients(function, arrays):
    segments, query, key, value, cotangent = arrays

    @jax.jit
    def run(segments, query, key, value):
        out, pull = jax.vjp(function(segments), query, key, value)
        return out, *pull(cotangent)

    return run(segments, query, key, value)


@pytest.fixture(scope="module")
def expected(arrays):
    def plain(segments):
        mask = packed_mask(segments)
        return lambda query, key, value: attend(query, key, value, mask)

    return values_and_gradients(plain, arrays)


@pytest.mark.parametrize(
    "axes",
    [
        None,
        {"fsdp": 2, "sequence": 2, "tensor": 2},
        {"tensor": 4},  # more than kv heads: query and kv heads are replicated
    ],
)
def test_invariant_4_splash_gives_values_and_gradients_of_the_reference(arrays, expected, axes):
    count = int(np.prod(list(axes.values()))) if axes else 1
    mesh = make_mesh(axes or {"data": 1}, jax.devices()[:count])
    placement = OnMesh(mesh) if axes else OneDevice()
    found = values_and_gradients(
        lambda segments: splash_attention(segments, placement, interpret=True), arrays
    )
    for name, a, b in zip(("out", "query", "key", "value"), found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("axes", [None, {"fsdp": 2, "tensor": 2}, {"tensor": 4}])
def test_invariant_4_triton_gives_values_and_gradients_of_the_reference(arrays, expected, axes):
    count = int(np.prod(list(axes.values()))) if axes else 1
    placement = OnMesh(make_mesh(axes, jax.devices()[:count])) if axes else OneDevice()
    found = values_and_gradients(
        lambda segments: triton_attention(segments, placement, interpret=True), arrays
    )
    for name, a, b in zip(("out", "query", "key", "value"), found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=name)


def test_triton_compiles_for_a_gpu_forward_and_backward_without_all_scores(arrays):
    """Without a GPU, compilation ends at the module for the GPU compiler."""
    segments, *rest = (jnp.asarray(x) for x in arrays)

    def run(segments, query, key, value, cotangent):
        attention = triton_attention(segments, OneDevice("gpu"))
        out, pull = jax.vjp(attention, query, key, value)
        return out, *pull(cotangent)

    check = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    made = jax.export.export(jax.jit(run), platforms=["cuda"], disabled_checks=[check])
    text = made(segments, *(x.astype(jnp.bfloat16) for x in rest)).mlir_module()
    assert text.count("__gpu$xla.gpu.triton") >= 2
    assert f"{LENGTH}x{LENGTH}x" not in text
    # The keys are not repeated for the query heads.
    assert f"{BATCH}x{LENGTH}x{GROUPS}x{HEAD_DIM}" in text


@pytest.mark.parametrize(
    ("length", "axes", "message"),
    [(200, {"data": 1}, "200 is not a multiple of 64"), (256, {"sequence": 2}, "whole sequences")],
)
def test_triton_refuses_sequences_that_its_kernel_does_not_support(length, axes, message):
    placement = OnMesh(make_mesh(axes, jax.devices()[: max(axes.values())]))
    with pytest.raises(UserError, match=message):
        triton_attention(jnp.zeros((1, length), jnp.int32), placement)


def test_splash_refuses_a_sequence_that_its_tiles_do_not_divide():
    with pytest.raises(UserError, match=r"sequence_length 200 over 1 devices is 200, not a mult"):
        splash_attention(jnp.zeros((1, 200), jnp.int32), OneDevice("tpu"))


@pytest.mark.parametrize(
    ("name", "platform", "backend"),
    [
        ("auto", "cpu", "xla"),
        ("auto", "tpu", "splash"),
        ("auto", "gpu", "triton"),
        ("xla", "tpu", "xla"),
    ],
)
def test_the_backend_follows_the_platform_of_the_devices(name, platform, backend):
    assert backend_for(name, platform) == backend


@pytest.mark.parametrize(
    ("name", "platform", "message"),
    [
        (
            "flash",
            "tpu",
            "model.attention = 'flash' is not a registered attention backend; did you mean splash?",
        ),
        ("splash", "gpu", "'splash' does not run on gpu; use auto or triton, mosaic, xla"),
    ],
)
def test_a_backend_that_is_unknown_or_of_another_platform_is_refused(name, platform, message):
    with pytest.raises(UserError, match=message):
        packed_attention(jnp.zeros((1, 8), jnp.int32), name, OneDevice(platform))


def test_the_ranges_for_gpu_kernels_are_the_mask():
    rng = np.random.default_rng(1)
    segments = np.cumsum(rng.random((3, 50)) < 0.2, axis=1).astype(np.int32)
    first, last = (np.asarray(x) for x in key_ranges(jnp.asarray(segments)))
    keys = np.arange(50)
    ranges = (keys >= first[..., None]) & (keys < last[..., None])
    np.testing.assert_array_equal(ranges, packed_mask(jnp.asarray(segments)))


def test_mosaic_without_tokamax_is_an_error_that_names_the_package(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tokamax._src.ops.attention", None)
    with pytest.raises(UserError, match=r"pip install 'soda-jax\[gpu\]'"):
        packed_attention(jnp.zeros((1, 8), jnp.int32), "mosaic", OneDevice("gpu"))
