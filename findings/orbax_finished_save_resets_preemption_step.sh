#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 with jax 0.10.2: an asynchronous save that finishes can make a preempted run stop
# at different steps. CheckpointManager calls reached_preemption(step) with the step of the save,
# in process 0 again from a background thread when the save has finished. jax stores the step of the last
# call as the position of the process, so process 0 seems to be back at the saved step. If the notice
# (SIGTERM) arrives before its next step, the processes agree on a step that process 0 has passed.
#
# Expected: orbax only reads whether the sync point was reached, and all processes stop at one step.
#
# Observed with 2 processes; process 0 is at step 9 and process 1 at step 8 when a save of step 3 finishes:
#   position reset by the save   process 0 never, process 1 at 9
#   reached_preemption replaced  process 0 at 10, process 1 at 10
#
# `soda_jax/checkpoints/manager.py` therefore replaces reached_preemption of its CheckpointManager.
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
import signal
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.multihost_utils import reached_preemption_sync_point

port, process, side, directory = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
jax.distributed.initialize(f"localhost:{port}", 2, process)
manager = ocp.CheckpointManager(directory)
if side == "replaced":
    manager.reached_preemption = lambda step: False
last = 9 - process
for step in range(1, last + 1):
    assert not reached_preemption_sync_point(step)
    if step == 3:
        mesh = jax.sharding.Mesh(jax.devices(), "x")
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        values = jax.make_array_from_callback((64,), sharding, lambda index: np.ones(64)[index])
        manager.save(step, args=ocp.args.StandardSave({"values": values}))
manager.wait_until_finished()
if process == 1:
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(8)  # the notice arrives within a second
steps = [step for step in range(last + 1, 50) if reached_preemption_sync_point(step)]
print(f"at {steps[0]}" if steps else "never", flush=True)
PYTHON
both() {
  local port
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
  for process in 1 0; do
    JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py" "$port" $process "$1" "$folder/$1" \
      2>"$folder/$process.log" >"$folder/$process.out" &
  done
  wait
  echo "process 0 $(tail -n 1 "$folder/0.out"), process 1 $(tail -n 1 "$folder/1.out")"
}
reset=$(both reset)
replaced=$(both replaced)
echo "position reset by the save   $reset"
echo "reached_preemption replaced  $replaced"
[[ $reset == "process 0 never, process 1 at 9" && $replaced == "process 0 at 10, process 1 at 10" ]]
