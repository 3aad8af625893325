"""Settings made before JAX is imported: eight simulated devices, one compilation cache for all tests."""

import atexit
import os
import shutil
import tempfile

# Programs this small need no optimization. Without the fusion emitters, XLA compiles them for a CPU in
# half the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_use_fusion_emitters=false --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The workers of pytest-xdist and the processes that tests start inherit the folder, so that each
# program is compiled once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["SODA_CACHE"] = tempfile.mkdtemp(prefix="soda-test-cache-")
    atexit.register(shutil.rmtree, os.environ["SODA_CACHE"], ignore_errors=True)

import pytest

from soda_jax.registry import PLUGINS


@pytest.fixture(autouse=True)
def plugins_end_with_the_test(monkeypatch):
    """The processes of later tests do not load the plugins of this one."""
    monkeypatch.setenv(PLUGINS, "")
