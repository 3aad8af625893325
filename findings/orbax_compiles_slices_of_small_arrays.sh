#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 with jax 0.10.2: the first save of a replicated state compiles programs for slices
# of its small arrays. An array that several devices hold is written in slices, one by each device, whatever
# its size (min_slice_bytes_for_replica_parallel is None). Each slice runs eagerly on its device, before `save`
# returns, and every new shape and offset is compiled. Neither CheckpointManager nor PyTreeCheckpointHandler has
# an option for the smallest slice; ArrayHandler, which can be replaced in a type handler registry, has one.
#
# Expected: arrays of a few kB are written by one device.
#
# Observed with 8 CPU devices and 24 arrays of 2 to 48 kB: the default compiles 192 programs in the first
# save (6 s until `save` returns, on two slow cores); with a smallest slice of 1 MiB, none.
#
# `soda_jax/checkpoints/manager.py` therefore registers an ArrayHandler with this limit.
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 orbax-checkpoint==0.12.8
cat >"$folder/run.py" <<'PYTHON'
import os
import sys
import tempfile
import time

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
import jax
import numpy as np
import orbax.checkpoint as ocp

mesh = jax.make_mesh((8,), ("data",))
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
state = {f"w{n}": jax.device_put(np.ones((64, 8 * n), np.float32), whole) for n in range(1, 25)}
programs = []


def listen(event, duration, **_):
    if event.endswith("backend_compile_duration"):
        programs.append(duration)


jax.monitoring.register_event_duration_secs_listener(listen)


def save(name, handler):
    with tempfile.TemporaryDirectory() as folder, ocp.AsyncCheckpointer(handler) as checkpointer:
        programs.clear()
        begin = time.perf_counter()
        checkpointer.save(os.path.join(folder, "state"), args=ocp.args.PyTreeSave(state))
        seconds = time.perf_counter() - begin
        checkpointer.wait_until_finished()
    print(f"{name}: save returned after {seconds:.2f} s, {len(programs)} programs compiled")
    return len(programs)


default = save("default", ocp.PyTreeCheckpointHandler())
arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=1 << 20)
types = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
limited = save("1 MiB", ocp.PyTreeCheckpointHandler(type_handler_registry=types))
sys.exit(0 if default > len(state) and limited == 0 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/run.py"
