import dataclasses
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from soda_jax.errors import UserError
from soda_jax.parallel import mesh, rules


def test_mesh_fills_one_axis_and_is_auto():
    made = mesh.make_mesh({"fsdp": 2, "data": -1})
    assert dict(made.shape) == {"dcn": 1, "data": 4, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert set(made.axis_types) == {AxisType.Auto}


def test_mesh_without_axes_is_data_parallel():
    assert mesh.make_mesh().shape["data"] == 8


def test_mesh_on_given_devices():
    assert mesh.make_mesh({"tensor": -1}, jax.devices()[:2]).shape["tensor"] == 2


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3}, "data=3 × fsdp=1 × sequence=1 × tensor=1 does not multiply to 8 devices"),
        ({"data": -1, "fsdp": 3}, "fsdp=3"),
        ({"data": -1, "fsdp": 16}, "does not multiply to 8"),
        ({"data": -1, "fsdp": -1}, "at most one"),
        ({"data": 0}, "positive"),
        ({"dcn": -1, "data": -1, "fsdp": -1}, "at most one"),
        ({"dcn": 3}, "dcn=3 × data=1"),
        ({"expert": 8}, "'expert' is unknown"),
    ],
)
def test_wrong_mesh_is_named(axes, message):
    with pytest.raises(UserError, match=message):
        mesh.make_mesh(axes)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the layout of a mesh looks at in a TPU device."""

    id: int
    slice_index: int
    process_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5p"


def make_chips(*slices, side=(2, 2, 2)):
    """Slices of `side` chips with the given numbers, hosts of four chips."""
    spots = list(itertools.product(*(range(n) for n in side)))
    size = len(spots)
    return [
        Chip(place * size + n, number, (place * size + n) // 4, spot[::-1])
        for place, number in enumerate(slices)
        for n, spot in enumerate(spots)
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_only_dcn_crosses_slices(order):
    chips = make_chips(0, 1, 2)[::order]
    made = mesh.make_mesh({"dcn": -1, "fsdp": -1, "tensor": 2}, chips)
    assert dict(made.shape) == {"dcn": 3, "data": 1, "fsdp": 4, "sequence": 1, "tensor": 2}
    for number, part in enumerate(made.devices):
        assert {chip.slice_index for chip in part.flat} == {number}
    assert set(made.devices.flat) == set(chips)
    # The innermost axis joins neighbours of the torus.
    for pair in made.devices.reshape(-1, 2):
        assert np.abs(np.subtract(pair[0].coords, pair[1].coords)).sum() == 1


def test_one_slice_needs_no_dcn_and_two_are_not_taken_for_one():
    unnumbered = [dataclasses.replace(chip, slice_index=None) for chip in make_chips(0)]
    for chips in (make_chips(4), unnumbered):
        assert mesh.make_mesh({"dcn": -1, "data": -1}, chips).shape["dcn"] == 1
    for sizes in ({"fsdp": -1}, {"dcn": 4, "fsdp": -1}):
        with pytest.raises(UserError, match=r"8 in slice 0, 8 in slice 1; .* set mesh.dcn=-1"):
            mesh.make_mesh(sizes, make_chips(0, 1))
    with pytest.raises(UserError, match="8 in slice 0, 4 in slice 1"):
        mesh.make_mesh({"dcn": 2, "fsdp": -1}, make_chips(0, 1)[:12])


def test_an_axis_may_be_part_of_a_dimension_of_the_torus():
    for chips in (make_chips(0, side=(4, 4, 1)), make_chips(0, 1, side=(4, 4, 1))):
        made = mesh.make_mesh({"dcn": -1, "data": 2, "fsdp": -1, "tensor": 2}, chips)
        assert made.devices.shape[1:] == (2, 4, 1, 2)
        assert set(made.devices.flat) == set(chips)


def test_hosts_without_slices_stay_together():
    devices = [
        dataclasses.replace(chip, platform="gpu", slice_index=None, device_kind="NVIDIA H100")
        for chip in make_chips(0, 0)
    ]
    made = mesh.make_mesh({"dcn": -1, "fsdp": 4}, devices[::-1])
    assert made.shape["dcn"] == 4
    for number, part in enumerate(made.devices):
        assert {device.process_index for device in part.flat} == {number}
    # GPUs of several hosts may also be one fsdp axis.
    assert mesh.make_mesh({"fsdp": -1}, devices).shape["fsdp"] == 16


def test_rows_are_split_over_slices_first():
    made = mesh.make_mesh({"dcn": 2, "data": 2, "fsdp": 2})
    # Each slice reads consecutive rows.
    assert rules.spec(made, ("batch",)) == PartitionSpec(("dcn", "data", "fsdp"))


def test_rules_split_what_divides_and_drop_what_does_not():
    made = mesh.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert rules.spec(made, ("batch", "sequence")) == PartitionSpec(("data", "fsdp"), None)
    assert rules.spec(made, ("batch", None), (6, 3)) == PartitionSpec(("data",), None)
    assert rules.spec(made, ("layers", "embed", "kv_heads", "head_dim"), (3, 8, 3, 4)) == (
        PartitionSpec(None, ("fsdp",), None, None)
    )
    assert rules.spec(made, ("codebooks", "codebook_size", "embed")) == (
        PartitionSpec(None, ("tensor",), ("fsdp",))
    )


def test_a_mesh_axis_serves_one_dimension_only():
    made = mesh.make_mesh({"tensor": 8})
    assert rules.spec(made, ("mlp", "vocabulary"), (16, 16)) == PartitionSpec(("tensor",), None)


def test_unknown_logical_axis_and_wrong_rank_are_refused():
    made = mesh.make_mesh()
    with pytest.raises(KeyError, match="embedding"):
        rules.spec(made, ("embedding",))
    with pytest.raises(ValueError, match="do not fit"):
        rules.spec(made, ("embed",), (2, 3))


def test_constrain_lays_the_array_inside_jit():
    made = mesh.make_mesh({"data": 4, "sequence": 2})
    batch = jax.numpy.zeros((8, 6))
    laid = jax.jit(lambda x: rules.constrain(x + 1, ("batch", "sequence"), made))(batch)
    assert laid.sharding.is_equivalent_to(rules.batch_sharding(made, batch.shape), 2)
    assert laid.addressable_shards[0].data.shape == (2, 3)
    assert rules.constrain(batch, ("batch", "sequence"), None) is batch
    assert rules.replicated(made).is_fully_replicated


@pytest.mark.parametrize(
    ("devices", "slices", "width", "axes", "fsdp"),
    [
        (128, 1, 2560, {}, 16),  # 20 columns a device would be left by 128
        (64, 1, 2048, {}, 16),
        (16, 1, 512, {}, 4),
        (8, 1, 2560, {}, 8),
        (1, 1, 512, {}, 1),
        (8, 1, 64, {}, 1),
        (128, 2, 2560, {"dcn": -1, "tensor": 8}, 8),
        (12, 1, 768, {}, 6),
    ],
)
def test_fsdp_and_data_both_to_fill_leave_every_device_a_tile(devices, slices, width, axes, fsdp):
    asked = {"data": -1, "fsdp": -1, **axes}
    sizes = mesh.mesh_sizes(asked, devices, slices, width)
    assert sizes["fsdp"] == fsdp
    assert np.prod(list(sizes.values())) == devices


def test_one_axis_to_fill_takes_all_that_is_left():
    assert mesh.mesh_sizes({"data": 2, "fsdp": -1}, 128, 1, 512)["fsdp"] == 64


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"dcn": -1, "data": -1, "fsdp": -1, "tensor": -1},
            "dcn=-1 × data=-1 × fsdp=-1 × sequence=1 × tensor=-1: .* one, or both data and fsdp, may be -1",
        ),
        ({"data": -1, "fsdp": -1, "tensor": 3}, "data=-1 × fsdp=-1 × sequence=1 × tensor=3 does not"),
        ({"data": -1, "fsdp": -1, "tensor": 0}, "data=-1 × fsdp=-1 × sequence=1 × tensor=0: .* posit"),
        ({"data": -1, "sequence": -1}, "data=-1 × fsdp=1 × sequence=-1 × tensor=1: "),
    ],
)  # fmt: skip
def test_an_error_about_a_mesh_shows_what_was_written_not_what_was_filled_in(axes, message):
    with pytest.raises(UserError, match=message):
        mesh.mesh_sizes(axes, 8, 2, 512)
