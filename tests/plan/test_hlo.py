"""Costs of compiled programs that were computed by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest

from soda_jax.parallel import rules
from soda_jax.parallel.mesh import make_mesh
from soda_jax.plan.costs import _first_group, count_costs
from soda_jax.plan.hlo import _window_pairs, parse_module

ROWS, WIDTH, LAYERS = 32, 64, 20


def costs_of(function, *arguments, mesh=None, kernels=None):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    sizes = dict(mesh.shape) if mesh is not None else {"data": 1}
    return count_costs(parse_module(text), sizes, kernels or {})


def array(*shape, sharding=None):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def test_a_loop_is_counted_as_often_as_it_runs():
    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    found = costs_of(layers, array(ROWS, WIDTH), array(LAYERS, WIDTH, WIDTH))
    assert found.flops == LAYERS * 2 * ROWS * WIDTH * WIDTH
    assert found.flops_once == 2 * ROWS * WIDTH * WIDTH
    assert found.open_loops == 0
    # Each round reads one layer of the weights, not the stack.
    weights = LAYERS * WIDTH * WIDTH * 4
    assert weights < found.bytes < 8 * weights


def test_loops_within_loops_multiply():
    def inner(x, w):
        return jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x), None

    def layers(x, weights):
        return jax.lax.scan(inner, x, weights)[0]

    found = costs_of(layers, array(ROWS, WIDTH), array(LAYERS, WIDTH, WIDTH))
    assert found.flops == 3 * LAYERS * 2 * ROWS * WIDTH * WIDTH


def test_products_with_batches_and_several_contracted_axes():
    found = costs_of(
        lambda a, b: jnp.einsum("gijk,gjkm->gim", a, b), array(3, 8, 16, 5), array(3, 16, 5, 32)
    )
    assert found.flops == 2 * 3 * 8 * 32 * 16 * 5


def test_traffic_is_what_an_element_wise_step_reads_and_writes():
    found = costs_of(lambda a, b: a * 2 + b, array(1000, 100), array(1000, 100))
    assert found.bytes == 3 * 1000 * 100 * 4


@pytest.mark.parametrize(
    ("axes", "split", "kind"),
    [
        ({"data": 2, "fsdp": 4}, ("batch", None), "all-reduce"),
        ({"data": 2, "tensor": 4}, ("batch", None), "all-reduce"),
    ],
)
def test_collectives_are_counted_by_mesh_axis_and_bytes(axes, split, kind):
    mesh = make_mesh(axes)
    laid = rules.sharding(mesh, split, (ROWS, WIDTH))

    @functools.partial(jax.jit, out_shardings=rules.replicated(mesh))
    def gram(x):
        return x.T @ x

    text = gram.lower(array(ROWS, WIDTH, sharding=laid)).compile().as_text()
    found = count_costs(parse_module(text), dict(mesh.shape), {})
    split_over = tuple(name for name in ("data", "fsdp") if axes.get(name, 1) > 1)
    count = 1
    for name in split_over:
        count *= axes[name]
    (one,) = found.collectives
    assert (one.kind, one.axes, one.devices) == (kind, split_over, count)
    assert one.bytes == pytest.approx(2 * (count - 1) / count * WIDTH * WIDTH * 4)
    assert found.flops == 2 * WIDTH * WIDTH * ROWS / count


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,4},{1,5}}, x", [0, 4]),
        ("replica_groups=[4,2]<=[8], x", [0, 1]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x", [0, 1, 2, 3]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [0, 4]),
        ("source_target_pairs={{0,1},{1,2}}", [0, 1]),
    ],
)  # fmt: skip
def test_every_notation_of_a_group_of_devices_is_read(text, group):
    assert _first_group(text).tolist() == group


def test_window_positions_over_padding_do_not_count():
    # A product written as a convolution: 8 positions, window of 8, reversed, over padding of 7 on each side.
    assert _window_pairs(1, 8, 8, 1, 7, 1, 1) == 8
    assert _window_pairs(8, 1, 8, 1, 0, 1, 1) == 8
    assert _window_pairs(10, 10, 3, 1, 1, 1, 1) == 3 * 10 - 2
    assert _window_pairs(4, 7, 1, 1, 0, 2, 1) == 4


def test_a_condition_without_a_written_count_is_read_from_its_comparison():
    text = """HloModule m

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %y = f32[8,8]{1,0:T(8,128)} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %r = (s32[], f32[8,8]{1,0:T(8,128)}) tuple(%next, %y)
}

%condition (q: (s32[], f32[8,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(36)
  %q = (s32[], f32[8,8]{1,0:T(8,128)}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %n), direction=LT
}

ENTRY %main (a: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %a = (s32[], f32[8,8]{1,0:T(8,128)}) parameter(0)
  ROOT %w = (s32[], f32[8,8]{1,0:T(8,128)}) while(%a), condition=%condition, body=%body
}
"""
    found = count_costs(parse_module(text), {"data": 1}, {})
    assert found.flops == 36 * 2 * 8**3
    # Without the constant the loop counts once and is reported.
    found = count_costs(parse_module(text.replace("constant(36)", "parameter(1)")), {"data": 1}, {})
    assert (found.flops, found.open_loops) == (2 * 8**3, 1)


def test_kernels_count_with_the_flops_stated_for_them():
    text = """ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8] parameter(0)
  ROOT %splash_mha_fwd.3 = f32[8] custom-call(%a), custom_call_target="tpu_custom_call"
}
"""
    found = count_costs(parse_module(text), {"data": 1}, {"splash_mha_fwd": 1e6})
    assert (found.flops, found.kernel_flops, found.flops_once) == (1e6, 1e6, 0.0)


def test_text_that_is_not_a_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse_module("nothing")


def test_traffic_between_slices_belongs_to_the_dcn_axis():
    text = """ENTRY %main (a: bf16[64,128]) -> bf16[64,128] {
  %a = bf16[64,128]{1,0:T(8,128)} parameter(0)
  %t = token[] after-all()
  %s = (bf16[64,128], u32[], token[]) send(%a, %t), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %d = token[] send-done(%s), channel_id=2
}
"""
    (one,) = count_costs(parse_module(text), {"dcn": 4, "data": 2}, {}).collectives
    assert (one.kind, one.axes, one.devices) == ("all-reduce", ("dcn",), 4)
    assert one.bytes == pytest.approx(2 * 3 / 4 * 64 * 128 * 2)


def test_the_largest_branch_of_a_conditional_counts():
    product = 2 * ROWS * WIDTH * WIDTH
    of_two = costs_of(
        lambda p, x, w: jax.lax.cond(p, lambda x: jnp.tanh(x @ w @ w), lambda x: x @ w, x),
        jax.ShapeDtypeStruct((), bool), array(ROWS, WIDTH), array(WIDTH, WIDTH),
    )  # fmt: skip
    assert of_two.flops == 2 * product
    of_three = costs_of(
        lambda i, x, w: jax.lax.switch(i, [jnp.sin, lambda x: x @ w @ w @ w, lambda x: x @ w], x),
        jax.ShapeDtypeStruct((), jnp.int32), array(ROWS, WIDTH), array(WIDTH, WIDTH),
    )  # fmt: skip
    assert of_three.flops == 3 * product
    # Only the largest branch counts: three products read the weights three times.
    weights, values = WIDTH * WIDTH * 4, ROWS * WIDTH * 4
    assert 3 * (weights + 2 * values) <= of_three.bytes < 3 * (weights + 2 * values) + 4 * values


def test_a_conditional_in_a_loop_counts_as_often_as_the_loop_runs():
    def layers(x, weights):
        def one(x, w):
            return jax.lax.cond(x[0, 0] > 0, lambda x: jnp.tanh(x @ w), lambda x: x, x), None

        return jax.lax.scan(one, x, weights)[0]

    found = costs_of(layers, array(ROWS, WIDTH), array(LAYERS, WIDTH, WIDTH))
    assert found.flops == LAYERS * 2 * ROWS * WIDTH * WIDTH


def test_a_conditional_with_true_and_false_computations_is_read():
    """XLA writes a conditional over a pred like this; the CPU compiler replaces it."""
    text = """HloModule m

%yes (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %y = f32[8,8]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%no (q: f32[8,8]) -> f32[8,8] {
  %q = f32[8,8]{1,0} parameter(0)
  %n = f32[8,8]{1,0} all-reduce(%q), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  ROOT %m = f32[8,8]{1,0} negate(%n)
}

ENTRY %main (b: pred[], a: f32[8,8]) -> f32[8,8] {
  %b = pred[] parameter(0)
  %a = f32[8,8]{1,0} parameter(1)
  ROOT %c = f32[8,8]{1,0} conditional(%b, %a, %a), true_computation=%yes, false_computation=%no
}
"""
    found = count_costs(parse_module(text), {"data": 2}, {})
    size = 8 * 8 * 4
    assert found.flops == 2 * 8**3
    # Each cost is that of the branch that has most of it.
    assert found.bytes == 4 * size
    assert found.sent() == {("data",): 2 * size / 2}


def test_traffic_to_the_host_is_counted_separately():
    """The offload of a scan as the TPU compiler writes it: one slice out and one in per layer."""
    whole = "bf16[15,4,8]{2,1,0:T(8,128)(2,1)S(5)}"
    slice_ = "bf16[1,4,8]{2,1,0:T(8,128)(2,1)}"
    text = f"""ENTRY %main (a: bf16[1,4,8], i: s32[]) -> bf16[1,4,8] {{
  %a = {slice_} parameter(0)
  %i = s32[]{{:T(128)}} parameter(1)
  %h = {whole} custom-call(), custom_call_target="AllocateBuffer"
  %out = (({whole}, {slice_}, s32[], s32[], s32[]), {whole}, u32[]{{:S(2)}}) dynamic-update-slice-start(%h, %a, %i, %i, %i)
  %kept = {whole} dynamic-update-slice-done(%out)
  %in = (({whole}, s32[], s32[], s32[]), {slice_}, u32[]{{:S(2)}}) dynamic-slice-start(%kept, %i, %i, %i), dynamic_slice_sizes={{1,4,8}}
  ROOT %back = {slice_} dynamic-slice-done(%in)
}}
"""
    found = count_costs(parse_module(text), {"data": 1}, {})
    size = 4 * 8 * 2
    assert found.host_bytes == 2 * size
    assert found.bytes == 2 * size  # read to be sent, written when received
    # A plain copy to the host, and one on the device.
    copies = """ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %s = (f32[8]{0:S(5)}, f32[8]{0}, u32[]) copy-start(%a)
  %d = f32[8]{0:S(5)} copy-done(%s)
  ROOT %b = f32[8]{0} copy(%a)
}
"""
    assert count_costs(parse_module(copies), {"data": 1}, {}).host_bytes == 8 * 4


def test_a_fusion_that_fills_a_stack_writes_only_the_new_slice():
    """The TPU compiler writes the activations that a scan keeps like this."""
    text = """HloModule m

%fused (p: bf16[15,8,8], x: bf16[8,8], i: s32[]) -> (bf16[15,8,8], bf16[8,8]) {
  %p = bf16[15,8,8]{2,1,0} parameter(0)
  %x = bf16[8,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  %y = bf16[8,8]{1,0} negate(%x)
  %new = bf16[1,8,8]{2,1,0} bitcast(%y)
  %stack = bf16[15,8,8]{2,1,0} dynamic-update-slice(%p, %new, %i, %z, %z)
  ROOT %t = (bf16[15,8,8]{2,1,0}, bf16[8,8]{1,0}) tuple(%stack, %y)
}

ENTRY %main (p: bf16[15,8,8], x: bf16[8,8], i: s32[]) -> (bf16[15,8,8], bf16[8,8]) {
  %p = bf16[15,8,8]{2,1,0} parameter(0)
  %x = bf16[8,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = (bf16[15,8,8]{2,1,0}, bf16[8,8]{1,0}) fusion(%p, %x, %i), kind=kLoop, calls=%fused
}
"""
    found = count_costs(parse_module(text), {"data": 1}, {})
    # x is read, y is written twice (once into the stack), and the index is read.
    assert found.bytes == 3 * 8 * 8 * 2 + 4
