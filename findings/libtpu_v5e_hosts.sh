#!/usr/bin/env bash
# libtpu 0.0.42.1 (with jax 0.10.2): a topology of TPU v5e always has hosts of 2x2 chips.
#
# Cloud TPU offers v5e with one chip (1x1), four chips (2x2) and eight chips (2x4) on one host.
# jax.experimental.topologies.get_topology_desc refuses "v5e:1x1", and returns two processes for "v5e:2x4".
# The error names chips_per_host_bounds, which must be passed even for the slice of one chip.
#
# soda plan passes the smaller of slice and host.
#
# Observed:
#   v5e:1x1: INVALID_ARGUMENT: Topology layout "v5e:1x1" is not divisible by the given (or default) chips_per_host_bounds "2x2x1"
#   v5e:1x1 with chips_per_host_bounds=(1, 1, 1): 1 devices, 1 processes
#   v5e:2x4: 8 devices, 2 processes
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1

JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost TPU_ACCELERATOR_TYPE=v5p-8 \
  TPU_MIN_LOG_LEVEL=3 TPU_STDERR_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PYTHON'
import sys

from jax.experimental import topologies


def look(name, **settings):
    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **settings
        ).devices
    except Exception as error:
        return str(error).splitlines()[0]
    processes = {device.process_index for device in devices}
    return f"{len(devices)} devices, {len(processes)} processes"


one, whole = look("v5e:1x1"), look("v5e:1x1", chips_per_host_bounds=(1, 1, 1))
eight = look("v5e:2x4")
print(f"v5e:1x1: {one}")
print(f"v5e:1x1 with chips_per_host_bounds=(1, 1, 1): {whole}")
print(f"v5e:2x4: {eight}")
as_observed = "is not divisible" in one and (whole, eight) == (
    "1 devices, 1 processes",
    "8 devices, 2 processes",
)
sys.exit(not as_observed)
PYTHON
