"""Implements the checks of `soda doctor`, which take a few seconds each.

All processes must run the same checks in the same order. A check `x` returns JSON-able values. If a
function `judge_x` exists, it receives the values of all processes (None for a process in which the
check failed) and returns the findings of the process `index`.
"""

import functools
import importlib.metadata
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from soda_jax.doctor.findings import FAILURE, OK, TIMEOUT, WARNING, Finding
from soda_jax.parallel import hosts, rules
from soda_jax.schema import RunConfig
from soda_jax.train.hardware import measure_matmul

PACKAGES = ("soda-jax", "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain")
REDUCED_BYTES = 64 << 20  # per device; large enough to be limited by bandwidth, not latency
CLOCK_WARNING, CLOCK_FAILURE = 5.0, 300.0  # seconds; stores reject signatures older than 5 min
SLOW_DEVICE = 0.8  # fraction of the median rate
READ_SECONDS = 5.0

Results = list[tuple[str, str]]  # level and message of each finding


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages on this host; "none" if not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def judge_versions(values: list[Any], index: int) -> Iterator[Finding]:
    """Reports a failure for each version that differs from that of process 0."""
    mine, first = values[index], values[0] or values[index]
    for name, version in mine.items():
        if version != first[name]:
            message = f"{name} is {version}, but {first[name]} in process 0: use the same lock file"
            yield Finding(FAILURE, "versions", message)
    installed = (f"{name} {version}" for name, version in mine.items() if version != "none")
    yield Finding(OK, "versions", ", ".join(installed))


def devices() -> dict[str, Any]:
    """Returns the number, kind, memory limit and memory use of the devices of this host."""
    local = jax.local_devices()
    stats = [device.memory_stats() or {} for device in local]
    used = [
        [str(device), stat["bytes_in_use"]]
        for device, stat in zip(local, stats, strict=True)
        if stat.get("bytes_in_use", 0) > 0.05 * stat.get("bytes_limit", float("inf"))
    ]
    limits = [stat["bytes_limit"] for stat in stats if "bytes_limit" in stat]
    return {
        "count": len(local),
        "kind": local[0].device_kind,
        "limit": min(limits, default=0),
        "used": used,
    }


def judge_devices(values: list[Any], index: int) -> Iterator[Finding]:
    """Reports a failure if the devices differ from those of process 0; warns about used memory."""
    mine, first = values[index], values[0] or values[index]
    memory = f", {mine['limit'] / 1e9:.1f} GB each" if mine["limit"] else ""
    total = sum(value["count"] for value in values if value)
    yield Finding(OK, "devices", f"{mine['count']} × {mine['kind']}{memory}; {total} in total")
    if (mine["count"], mine["kind"]) != (first["count"], first["kind"]):
        message = (
            f"{mine['count']} × {mine['kind']}, but process 0 has {first['count']} × {first['kind']}: "
            "use hosts with the same devices"
        )
        yield Finding(FAILURE, "devices", message)
    for name, size in mine["used"]:
        message = f"{name}: {size / 1e9:.1f} GB already in use; end other programs that use it"
        yield Finding(WARNING, "devices", message)


def arithmetic(size: int = 4096, repeats: int = 5) -> dict[str, Any]:
    """Measures the FLOP/s of a bf16 matrix product on each device of this host."""
    if jax.local_devices()[0].platform == "cpu":
        size = 1024
    rates = {}
    for device in jax.local_devices():
        with jax.default_device(device):
            rates[str(device)] = measure_matmul(size, repeats, "bfloat16")
    return {"size": size, "rates": rates, "platform": jax.local_devices()[0].platform}


def judge_arithmetic(values: list[Any], index: int) -> Iterator[Finding]:
    """Warns about devices below `SLOW_DEVICE` × the median rate, because they delay all others."""
    mine = values[index]
    rates = mine["rates"]
    low, high = min(rates.values()) / 1e12, max(rates.values()) / 1e12
    message = f"{low:.3g} to {high:.3g} TFLOP/s per device, bf16, {mine['size']}³"
    yield Finding(OK, "arithmetic", message)
    median = float(
        np.median([rate for value in values if value for rate in value["rates"].values()])
    )
    # Simulated devices share the CPU, so their rates cannot be compared.
    for name, rate in rates.items() if mine["platform"] != "cpu" else ():
        if rate < SLOW_DEVICE * median:
            message = f"{name} reaches {rate / median:.0%} of the median rate: replace its host"
            yield Finding(WARNING, "arithmetic", message)


def all_reduce(mesh: jax.sharding.Mesh, size: int = 0) -> Results:
    """Checks an all-reduce over each mesh axis and reports its bus bandwidth (as in nccl-tests).

    Args:
      mesh: mesh of the run.
      size: bytes per device; 0 = `REDUCED_BYTES`.
    """
    if mesh.size == 1:
        return [(OK, "one device, no all-reduce")]
    axes = [(axis, count) for axis, count in mesh.shape.items() if count > 1]
    return [_reduce_over(mesh, axis, count, size or REDUCED_BYTES) for axis, count in axes]


def _reduce_over(mesh: jax.sharding.Mesh, axis: str, count: int, size: int) -> tuple[str, str]:
    names = tuple(mesh.shape)
    length = size // 4

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(), out_specs=PartitionSpec(names), check_vma=False
    )
    def make() -> jax.Array:
        return jnp.full((length,), jnp.float32(jax.lax.axis_index(axis) + 1))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec(names), out_specs=PartitionSpec(names),
        check_vma=False,
    )  # fmt: skip
    def reduce(x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, axis)

    x = jax.jit(make)()
    run = jax.jit(reduce)
    out = run(x).block_until_ready()
    expected = count * (count + 1) / 2
    if any((np.asarray(part.data[:8]) != expected).any() for part in out.addressable_shards):
        return FAILURE, f"{axis}={count}: the sum is wrong; replace the hardware"
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run(x).block_until_ready()
        times.append(time.perf_counter() - start)
    rate = 2 * (count - 1) / count * size / min(times)
    return OK, f"{axis}={count}: {rate / 1e9:.2f} GB/s bus bandwidth ({size >> 20} MiB per device)"


def data(config: RunConfig, dataset: Any, rows: Sequence[int]) -> Results:
    """Reads batches of the run for a few seconds and reports the tokens per second of this host."""
    from soda_jax.data.loader import Loader

    batches, start = 0, time.perf_counter()
    with Loader(dataset, config.batch_size, 0, rows) as loader:
        while time.perf_counter() - start < READ_SECONDS:
            next(loader)
            batches += 1
    seconds = time.perf_counter() - start
    tokens = batches * len(rows) * config.data.sequence_length
    names = ", ".join(f"{s.name} {s.windows:,}" for s in dataset.sources)
    return [(OK, f"{tokens / seconds:,.0f} tokens/s read on this host; windows: {names}")]


def disk(folder: Path, state_bytes: float, keep: int) -> Results:
    """Checks that a local folder has room for the kept checkpoints and one unfinished save."""
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    needed = (keep + 1) * state_bytes
    message = (
        f"{free / 1e9:,.1f} GB free in {existing}; {keep} checkpoints and one unfinished save need "
        f"{needed / 1e9:,.1f} GB"
    )
    return [(OK if free > needed else FAILURE, message)]


def checkpoint(mesh: jax.sharding.Mesh, folder: str, size: int = 32 << 20) -> Results:
    """Saves a sharded array as in a run, restores it and compares all bytes.

    Args:
      mesh: mesh of the run.
      folder: folder or gs://… URL of the checkpoints of the run; the test checkpoint is removed.
      size: bytes per device.
    """
    from etils import epath

    from soda_jax.checkpoints import Checkpointer

    length = size // 4 * jax.device_count() // mesh.size * mesh.size
    sharding = NamedSharding(mesh, PartitionSpec(tuple(mesh.shape)))
    state = {"params": {"doctor": jax.jit(lambda: jnp.arange(length), out_shardings=sharding)()}}
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    path = f"{folder.rstrip('/')}/doctor"
    start = time.perf_counter()
    try:
        with Checkpointer(path, every_steps=1, keep=1) as checkpointer:
            checkpointer.maybe_save(1, state, {"windows": 0}, force=True)
            checkpointer.wait()
            write_seconds = time.perf_counter() - start
            start = time.perf_counter()
            restored, _, _ = checkpointer.restore(abstract, 1)
            read_seconds = time.perf_counter() - start
    finally:
        hosts.barrier("doctor: checkpoint read", TIMEOUT)
        if hosts.is_primary() and (directory := epath.Path(path)).exists():
            directory.rmtree()
    same = all(
        np.array_equal(np.asarray(a.data), np.asarray(b.data))
        for a, b in zip(
            state["params"]["doctor"].addressable_shards,
            restored["params"]["doctor"].addressable_shards,
            strict=True,
        )
    )
    if not same:
        return [(FAILURE, f"{path}: restored bytes differ from the saved ones: use another store")]
    megabytes = length * 4 / 1e6
    message = (
        f"{megabytes:,.0f} MB saved with digest at {megabytes / write_seconds:,.0f} MB/s, restored and "
        f"verified at {megabytes / read_seconds:,.0f} MB/s"
    )
    return [(OK, message)]


def clocks() -> float:
    """Returns the time on this host in seconds, read right after a barrier."""
    hosts.barrier("doctor: clocks", TIMEOUT)
    return time.time()


def judge_clocks(values: list[Any], index: int) -> Iterator[Finding]:
    """Warns, or reports a failure, if the clocks of all hosts differ too much."""
    times = [value for value in values if value is not None]
    spread = max(times) - min(times)
    level = FAILURE if spread > CLOCK_FAILURE else WARNING if spread > CLOCK_WARNING else OK
    fix = "" if level == OK else ": start the time service (NTP) on all hosts"
    yield Finding(level, "clocks", f"{len(times)} clocks within {spread:.2f} s{fix}")


def layout(mesh: jax.sharding.Mesh) -> Results:
    """Reports the mesh axes and how they split batch, hidden size, sequence and heads."""
    split = {name: rules.RULES[name] for name in ("batch", "embed", "sequence", "heads")}
    sizes = {
        name: int(np.prod([mesh.shape[axis] for axis in axes])) for name, axes in split.items()
    }
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    parts = ", ".join(f"{name} over {size}" for name, size in sizes.items() if size > 1)
    return [(OK, f"{axes or 'one device'}{'; ' + parts if parts else ''}")]
