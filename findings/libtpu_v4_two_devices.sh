#!/usr/bin/env bash
# libtpu 0.0.42.1 (with jax 0.10.2): a topology of TPU v4 has two devices per chip.
#
# On a machine with TPU v4, JAX shows one device per chip: its two cores work as one ("megacore") with
# 32 GiB. jax.experimental.topologies.get_topology_desc for "v4:2x2x1", four chips, returns eight devices, and
# the compiler gives each of them 15.25 GiB. A step that is compiled ahead of time for this topology is not
# the step that runs. With chip_config_name="megacore" there is one device per chip, with 30.75 GiB.
#
# soda plan passes that setting, and refuses a topology whose number of devices is not the expected one.
#
# Observed:
#   v4:2x2x1: 8 devices for 4 chips, 15.25G each
#   v4:2x2x1 with chip_config_name=megacore: 4 devices for 4 chips, 30.75G each
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1

JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost TPU_ACCELERATOR_TYPE=v5p-8 \
  TPU_MIN_LOG_LEVEL=3 TPU_STDERR_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PYTHON'
import re
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies


def look(**settings):
    """(devices, chips, memory of a device as the compiler reports it)."""
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name="v4:2x2x1", **settings
    ).devices
    # More than any device has, so that the compiler reports how much it has.
    large = jax.ShapeDtypeStruct(
        (100 << 20, 1024), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(devices[0])
    )
    try:
        jax.jit(jnp.sum).lower(large).compile()
    except jax.errors.JaxRuntimeError as error:
        memory = re.search(r"available HBM \(([\d.]+G)\)", str(error))[1]
    return len(devices), len({tuple(device.coords) for device in devices}), memory


plain, megacore = look(), look(chip_config_name="megacore")
print("v4:2x2x1: {} devices for {} chips, {} each".format(*plain))
print(
    "v4:2x2x1 with chip_config_name=megacore: {} devices for {} chips, {} each".format(*megacore)
)
sys.exit(not (plain == (8, 4, "15.25G") and megacore == (4, 4, "30.75G")))
PYTHON
