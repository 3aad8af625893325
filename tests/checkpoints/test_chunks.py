"""Large arrays are stored so that a layer, or some rows, can be read without the rest."""

import math

import checkpoint_states as states
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from soda_jax.checkpoints import Checkpointer, CheckpointReader, chunks, manager
from soda_jax.parallel import mesh, rules

AXES = {
    "gate": ("layers", "embed", "mlp"),
    "query": ("layers", "embed", "heads", None),
    "norm": ("layers", "embed"),
    "few": ("layers", "embed", "mlp"),
    "table": ("vocabulary", "embed"),
}
SHAPES = {
    "gate": (6, 1024, 512),  # 2 MiB a layer
    "query": (6, 512, 8, 128),
    "norm": (6, 1024),
    "few": (6, 64, 64),
    "table": (8192, 256),  # 8 MiB
}
MIB = 1 << 20


@pytest.fixture(autouse=True)
def low_limit(monkeypatch):
    """One MiB, the least for which orbax does not warn."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", MIB)


def laid_on(where) -> dict:
    """Parameters that count up, so that a piece at a wrong offset is found."""

    def make(name):
        counted = np.arange(math.prod(SHAPES[name]), dtype=np.float32).reshape(SHAPES[name])
        return jax.device_put(counted, rules.sharding(where, AXES[name], SHAPES[name]))

    return {name: make(name) for name in SHAPES}


def chunk_shapes(folder, step: int) -> dict:
    stored = ocp.PyTreeCheckpointHandler().metadata(CheckpointReader(folder).path(step) / "params")
    return {name: leaf.storage.chunk_shape for name, leaf in stored.tree.items()}


@pytest.mark.parametrize(
    "axes", [{"data": 1}, {"fsdp": 8}, {"fsdp": 2, "tensor": 2}, {"data": 4, "fsdp": 2}]
)
def test_a_chunk_holds_one_layer_and_any_mesh_restores_every_bit(tmp_path, axes, caplog):
    devices = jax.devices()[: math.prod(axes.values())]
    saved = {"params": laid_on(mesh.make_mesh(axes, devices)), "step": jnp.int32(1)}
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(1, saved, {})
    assert not [record for record in caplog.records if "too small" in record.getMessage()]

    shapes = chunk_shapes(tmp_path, 1)
    for name, leaf in saved["params"].items():
        here = leaf.sharding.shard_shape(leaf.shape)
        # Devices that hold the same share the writing of it among them.
        copies = len(devices) * math.prod(here) // leaf.size
        small = 4 * math.prod(here) // copies < manager._MIN_SLICE_BYTES
        if name in ("gate", "query"):
            # Never less than one layer of what a device writes, though that is above the limit.
            assert shapes[name][0] == 1, name
            assert math.prod(shapes[name][1:]) * copies >= math.prod(here[1:]), name
        elif name == "table":
            assert 4 * math.prod(shapes[name]) <= MIB
        else:
            assert math.prod(shapes[name]) * (1 if small else copies) == math.prod(here), name

    for other in ({"fsdp": 4}, {"data": 2, "tensor": 4}, {"data": 1}):
        target = mesh.make_mesh(other, jax.devices()[-math.prod(other.values()) :])
        wanted = {"params": laid_on(target), "step": jnp.int32(1)}
        restored, _, _ = CheckpointReader(tmp_path).restore(states.abstract(wanted))
        states.assert_same(restored, saved)


def test_rows_of_a_large_table_lie_together(tmp_path):
    saved = {"params": laid_on(mesh.make_mesh({"data": 1}, jax.devices()[:1]))}
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(1, saved, {})
    rows, columns = chunk_shapes(tmp_path, 1)["table"]
    assert columns == 256 and rows * columns * 4 <= MIB


def test_the_limit_is_on_what_a_device_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * MIB)
    whole = laid_on(mesh.make_mesh({"fsdp": 8}))
    with Checkpointer(tmp_path, every_steps=1) as checkpointer:
        checkpointer.maybe_save(1, {"params": whole}, {})
    # 12 MiB over eight devices.
    assert chunk_shapes(tmp_path, 1)["gate"] == (6, 128, 512)


def test_saving_small_replicated_arrays_compiles_nothing(tmp_path, monkeypatch):
    where = rules.replicated(mesh.make_mesh({"data": 8}))
    small = {"params": {f"w{n}": jax.device_put(np.ones((8, 8 * n)), where) for n in range(1, 9)}}
    compiled = []

    def listen(event, duration, **_):
        compiled.append(event) if event.endswith("backend_compile_duration") else None

    def count(folder) -> int:
        with Checkpointer(folder, every_steps=1) as checkpointer:
            compiled.clear()
            checkpointer.maybe_save(1, small, {})
            return len(compiled)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert count(tmp_path / "whole") == 0
        monkeypatch.setattr(manager, "_MIN_SLICE_BYTES", 0)
        assert count(tmp_path / "sliced") > 0  # the listener sees what the limit prevents
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
