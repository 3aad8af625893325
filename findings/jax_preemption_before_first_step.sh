#!/usr/bin/env bash
# jax 0.10.2 with jaxlib 0.10.2: a preemption notice (SIGTERM) that arrives before the first call of
# jax.experimental.multihost_utils.reached_preemption_sync_point is lost in a run that does not start at
# step 1. A process that has not called it counts as being at step 0, so the processes agree on step 1,
# which a run that resumed at step 1000 never reaches.
#
# Expected: the function returns True at the first step that it is called with, or an error. Its
# documentation demands only that "all hosts must start training from the same step".
#
# Observed with 2 processes, each of which calls it with the steps 1000 to 1049:
#   SIGTERM before step 1000  process 0 never, process 1 never
#   SIGTERM after step 1000   process 0 at 1001, process 1 at 1001
#
# `soda_jax/parallel/preemption.py` therefore counts its calls from 1 instead of passing the step.
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/run.py" <<'PYTHON'
import os
import signal
import sys
import time

import jax
from jax.experimental.multihost_utils import reached_preemption_sync_point

port, process, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, process)
first = 1000
if moment == "after":
    reached_preemption_sync_point(first)
    first += 1
if process == 1:
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(8)  # the notice arrives within a second
steps = [step for step in range(first, 1050) if reached_preemption_sync_point(step)]
print(f"at {steps[0]}" if steps else "never")
PYTHON
both() {
  local port
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
  for process in 1 0; do
    JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py" "$port" $process "$1" \
      2>"$folder/$process.log" >"$folder/$process.out" &
  done
  wait
  echo "process 0 $(tail -n 1 "$folder/0.out"), process 1 $(tail -n 1 "$folder/1.out")"
}
before=$(both before)
after=$(both after)
echo "SIGTERM before step 1000  $before"
echo "SIGTERM after step 1000   $after"
[[ $before == "process 0 never, process 1 never" && $after == "process 0 at 1001, process 1 at 1001" ]]
