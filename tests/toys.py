"""Helpers for the tests of several packages."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soda_jax.model import ModelFunctions

# A decoder of a few thousand parameters, but for its vocabulary, MLP and rotary positions.
SHAPE = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "compute_dtype": "float32",
    "remat": "none",
}


@pytest.fixture(autouse=True, scope="package")
def full_precision() -> Iterator[None]:
    """Computes products of f32 in f32 on any backend."""
    with jax.default_matmul_precision("highest"):
        yield


def random_params(model: ModelFunctions, seed: int = 0) -> dict:
    """Normal weights of deviation 0.2 and norms of about 1, without compiling `model.init`."""
    rng = np.random.default_rng(seed)

    def make(path, leaf):
        mean = 1.0 if "norm" in path[-1].key else 0.0
        return jnp.asarray(mean + 0.2 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(make, model.abstract)


def xla_flags(devices: int) -> str:
    """Returns the XLA flags of the tests for a process of `devices` simulated devices."""
    count = "--xla_force_host_platform_device_count="
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(count)]
    return " ".join([*flags, f"{count}{devices}"])


def free_port() -> int:
    """Returns a free port of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run_two(
    program: str, *arguments: str, environment: Mapping[str, str], timeout: float
) -> tuple[list[int], list[str]]:
    """Runs `program PORT NUMBER ARGUMENTS…` as processes 0 and 1 of one job.

    Returns:
      exit codes and what each printed, stderr included.
    """
    port = str(free_port())
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, port, str(number), *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], printed
