import json

import checkpoint_states as states
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soda_jax.checkpoints import Checkpointer, CheckpointReader
from soda_jax.errors import UserError
from soda_jax.parallel import mesh


@pytest.fixture
def fsdp():
    return mesh.make_mesh({"fsdp": 4, "tensor": 2})


def test_restore_repeats_every_bit_and_the_metadata(tmp_path, fsdp):
    saved = states.state(fsdp, 7)
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        assert checkpointer.maybe_save(7, saved, {"windows": 11, "config": {"a": [1]}})
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        state, metadata, report = checkpointer.restore(states.abstract(saved))
    states.assert_same(state, saved)
    assert (metadata["windows"], metadata["config"]) == (11, {"a": [1]})
    assert (report.step, report.verified, report.skipped, report.lines()) == (7, True, (), [])


def test_invariant_7_restore_on_other_meshes(tmp_path, fsdp):
    saved = states.state(fsdp, 1)
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(1, saved, {})
    for other in (
        mesh.make_mesh({"data": 1}, jax.devices()[:1]),
        mesh.make_mesh({"data": 8}),
        mesh.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[4:]),
    ):
        wanted = states.abstract(states.state(other))
        state, _, _ = CheckpointReader(tmp_path).restore(wanted)
        states.assert_same(state, saved)
        for leaf, want in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
            assert leaf.sharding == want.sharding


def test_donating_the_state_right_after_a_save_does_not_change_the_checkpoint(tmp_path):
    state = {"params": {"w": jnp.arange(3e6)}, "step": jnp.int32(1)}
    expected = np.arange(3e6, dtype=np.float32)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(1, state, {})
        state = step(step(state))
        checkpointer.wait()
        restored, _, _ = checkpointer.restore(states.abstract(state))
    np.testing.assert_array_equal(np.asarray(restored["params"]["w"]), expected)


def test_restore_params_verifies_and_casts_only_the_parameters(tmp_path, fsdp):
    saved = states.state(fsdp, 3)
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(3, saved, {"k": 1})
    # Damage to the optimizer's arrays does not concern whoever reads the parameters.
    states.flip_bit(states.largest_file(tmp_path / "3", "training"))
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), saved["params"]
    )
    params, metadata, _ = CheckpointReader(tmp_path).restore_params(wanted)
    states.assert_same(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), saved["params"]))
    assert metadata["k"] == 1
    states.flip_bit(states.largest_file(tmp_path / "3", "params"))
    with pytest.raises(UserError, match=r"params/.* is damaged"):
        CheckpointReader(tmp_path).restore_params(wanted)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int4", "bool", "complex64"])
def test_floats_are_not_cast_to_integers_bools_or_complex_numbers(tmp_path, fsdp, dtype):
    saved = states.state(fsdp, 3)
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(3, saved, {})
    wanted = states.abstract(saved["params"])
    wanted["layer"]["w"] = jax.ShapeDtypeStruct((8, 16), jnp.dtype(dtype))
    with pytest.raises(
        UserError,
        match=f"layer/w is float32 in the checkpoint and {dtype} in the model.*only floats",
    ):
        CheckpointReader(tmp_path).restore_params(wanted)


def test_integers_among_the_parameters_are_read_and_not_cast(tmp_path):
    params = {"steps": jnp.arange(3), "flags": jnp.array([True, False]), "w": jnp.ones(2)}
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(1, {"params": params}, {})
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    found, _, _ = CheckpointReader(tmp_path).restore_params(wanted)
    states.assert_same(found, params)
    for name, dtype in (("steps", jnp.float32), ("steps", jnp.int8), ("flags", jnp.int32)):
        other = {**wanted, name: jax.ShapeDtypeStruct(params[name].shape, dtype)}
        with pytest.raises(UserError, match=f"{name} is .* in the checkpoint and .* in the model"):
            CheckpointReader(tmp_path).restore_params(other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_floats_are_cast_to_narrower_floats(tmp_path, dtype):
    params = {"w": jnp.linspace(-2.0, 2.0, 7)}
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(1, {"params": params}, {})
    wanted = {"w": jax.ShapeDtypeStruct((7,), jnp.dtype(dtype))}
    found, _, _ = CheckpointReader(tmp_path).restore_params(wanted)
    states.assert_same(found, {"w": params["w"].astype(dtype)})


def test_a_state_of_other_names_shapes_or_dtypes_is_refused_by_name(tmp_path, fsdp):
    saved = states.state(fsdp)
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(1, saved, {})
    wanted = states.abstract(saved)
    wanted["params"]["extra"] = wanted["params"].pop("half")
    wanted["params"]["layer"]["w"] = jax.ShapeDtypeStruct((8, 32), jnp.float32)
    wanted["step"] = jax.ShapeDtypeStruct((), jnp.float32)
    with pytest.raises(UserError) as error:
        CheckpointReader(tmp_path).restore(wanted)
    for phrase in (
        "extra is not in the checkpoint",
        "half is only in the checkpoint",
        "layer/w is [8, 16] in the checkpoint and [8, 32] in the model",
        "step is int32 in the checkpoint and float32 in the model",
    ):
        assert phrase in str(error.value)


def test_saves_by_steps_by_minutes_and_by_force(tmp_path):
    now = [0.0]
    state = {"params": {"w": jnp.zeros(2)}}
    with Checkpointer(
        tmp_path, every_steps=10, every_minutes=2, keep=9, clock=lambda: now[0]
    ) as checkpointer:
        saves = []
        for step, seconds in [(0, 0), (9, 5), (10, 6), (11, 120), (12, 127), (13, 200), (20, 201)]:
            now[0] = seconds
            assert checkpointer.due(step) == checkpointer.maybe_save(step, state, dict)
            saves += [step] * (step == checkpointer._last_step)
        assert saves == [10, 12, 20]
        assert not checkpointer.maybe_save(20, state, {}, force=True)  # just saved
        assert checkpointer.maybe_save(21, state, {}, force=True)
        checkpointer.wait()
        assert checkpointer.reader.steps() == [10, 12, 20, 21]


def test_keeps_the_newest_and_the_periodic_ones(tmp_path):
    state = {"params": {"w": jnp.zeros(2)}}
    with Checkpointer(tmp_path, every_steps=1, keep=2, keep_period=4) as checkpointer:
        for step in range(1, 8):
            checkpointer.maybe_save(step, state, {})
    assert CheckpointReader(tmp_path).steps() == [4, 6, 7]
    with pytest.raises(UserError, match="keep=0"):
        Checkpointer(tmp_path, every_steps=1, keep=0)


def test_a_restored_step_is_not_saved_again_and_two_branches_are_refused(tmp_path):
    state = {"params": {"w": jnp.zeros(2)}}
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        for step in (1, 2):
            checkpointer.maybe_save(step, state, {})
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.restore(states.abstract(state))
        assert not checkpointer.maybe_save(2, state, {}, force=True)
        assert checkpointer.maybe_save(3, state, {})
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.restore(states.abstract(state), 1)
        with pytest.raises(UserError, match="contains checkpoint 3, but this run is at step 2"):
            checkpointer.maybe_save(2, state, {})


def test_an_empty_or_missing_folder_is_reported(tmp_path):
    reader = CheckpointReader(tmp_path / "none")
    assert reader.steps() == []
    with pytest.raises(UserError, match=r"no checkpoints in .*none"):
        reader.choose()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be opened"):
        Checkpointer(tmp_path / "file" / "below", every_steps=1)


def test_another_format_version_is_refused_with_both_named(tmp_path):
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(1, {"params": {"w": jnp.zeros(2)}}, {})
    path = tmp_path / "1" / "metadata" / "metadata"
    path.write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError, match="format 99, this program reads 2"):
        CheckpointReader(tmp_path).metadata(1)


def test_invariant_10_no_pickle_and_no_class_is_stored(tmp_path, fsdp):
    saved = states.state(fsdp)
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(1, saved, {})
    tree = json.loads((tmp_path / "1" / "training" / "_METADATA").read_text())
    kinds = {
        key["key_type"] for leaf in tree["tree_metadata"].values() for key in leaf["key_metadata"]
    }
    assert kinds == {2}  # dict keys only: optax's NamedTuples were stored by their field names
    for path in tmp_path.rglob("*"):
        assert not (path.is_file() and path.read_bytes().startswith(b"\x80\x04"))
