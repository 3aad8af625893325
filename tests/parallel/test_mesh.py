import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from soda_jax.errors import UserError
from soda_jax.parallel import mesh, rules


def test_mesh_fills_one_axis_and_is_auto():
    made = mesh.make_mesh({"fsdp": 2, "data": -1})
    assert dict(made.shape) == {"data": 4, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert set(made.axis_types) == {AxisType.Auto}


def test_mesh_without_axes_is_data_parallel():
    assert mesh.make_mesh().shape["data"] == 8


def test_mesh_on_given_devices():
    assert mesh.make_mesh({"tensor": -1}, jax.devices()[:2]).shape["tensor"] == 2


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({"data": 3}, "data=3 × fsdp=1 × sequence=1 × tensor=1 does not make 8 devices"),
        ({"data": -1, "fsdp": 3}, "fsdp=3"),
        ({"data": -1, "fsdp": 16}, "does not make 8"),
        ({"data": -1, "fsdp": -1}, "at most one"),
        ({"data": 0}, "positive"),
        ({"expert": 8}, "'expert' is unknown"),
    ],
)
def test_wrong_mesh_is_named(axes, told):
    with pytest.raises(UserError, match=told):
        mesh.make_mesh(axes)


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
