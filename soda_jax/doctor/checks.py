"""The checks of `soda doctor`, each a few seconds; every host runs them alike and in one order."""

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

from soda_jax.doctor.findings import FAILURE, OK, PATIENCE, WARNING, Finding
from soda_jax.parallel import hosts, rules
from soda_jax.schema import RunConfig
from soda_jax.train.hardware import measure_matmul

PACKAGES = ("soda-jax", "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain")
REDUCED_BYTES = 64 << 20  # of each device, enough to be bandwidth and not latency
CLOCK_WARNING, CLOCK_FAILURE = 5.0, 300.0  # stores refuse requests signed five minutes off
SLOW_DEVICE = 0.8  # of the median rate
READING_SECONDS = 5.0

Told = list[tuple[str, str]]  # level and text of each finding


def versions() -> dict[str, str]:
    """Python and packages of this host, "none" for what is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def judge_versions(values: list[Any], number: int) -> Iterator[Finding]:
    """They must be alike on all hosts."""
    mine, first = values[number], values[0] or values[number]
    for name, version in mine.items():
        if version != first[name]:
            told = (
                f"{name} is {version}, on process 0 {first[name]}: install the same lock everywhere"
            )
            yield Finding(FAILURE, "versions", told)
    told = ", ".join(f"{name} {version}" for name, version in mine.items() if version != "none")
    yield Finding(OK, "versions", told)


def devices() -> dict[str, Any]:
    """Number, kind and memory of this host's devices."""
    here = jax.local_devices()
    stats = [device.memory_stats() or {} for device in here]
    used = [
        [str(device), stat["bytes_in_use"]]
        for device, stat in zip(here, stats, strict=True)
        if stat.get("bytes_in_use", 0) > 0.05 * stat.get("bytes_limit", float("inf"))
    ]
    limits = [stat["bytes_limit"] for stat in stats if "bytes_limit" in stat]
    return {
        "count": len(here),
        "kind": here[0].device_kind,
        "limit": min(limits, default=0),
        "used": used,
    }


def judge_devices(values: list[Any], number: int) -> Iterator[Finding]:
    """They must be alike on all hosts, and free."""
    mine, first = values[number], values[0] or values[number]
    memory = f", {mine['limit'] / 1e9:.1f} GB each" if mine["limit"] else ""
    total = sum(value["count"] for value in values if value)
    yield Finding(OK, "devices", f"{mine['count']} × {mine['kind']}{memory}; {total} in all")
    if (mine["count"], mine["kind"]) != (first["count"], first["kind"]):
        told = f"{mine['count']} × {mine['kind']}, process 0 has {first['count']} × {first['kind']}"
        yield Finding(FAILURE, "devices", f"{told}: a run wants hosts that are alike")
    for name, size in mine["used"]:
        told = f"{name}: {size / 1e9:.1f} GB are in use by something else"
        yield Finding(WARNING, "devices", told)


def arithmetic(size: int = 4096, repeats: int = 5) -> dict[str, Any]:
    """FLOP/s of a product of matrices on each device of this host alone, bf16."""
    if jax.local_devices()[0].platform == "cpu":
        size = 1024
    rates = {}
    for device in jax.local_devices():
        with jax.default_device(device):
            rates[str(device)] = measure_matmul(size, repeats, "bfloat16")
    return {"size": size, "rates": rates, "platform": jax.local_devices()[0].platform}


def judge_arithmetic(values: list[Any], number: int) -> Iterator[Finding]:
    """A slow device slows all."""
    mine = values[number]
    rates = mine["rates"]
    low, high = min(rates.values()) / 1e12, max(rates.values()) / 1e12
    told = f"{low:.3g} to {high:.3g} TFLOP/s a device, bf16, {mine['size']}³"
    yield Finding(OK, "arithmetic", told)
    median = float(
        np.median([rate for value in values if value for rate in value["rates"].values()])
    )
    # Simulated devices share the processor: their rates say nothing of each other.
    for name, rate in rates.items() if mine["platform"] != "cpu" else ():
        if rate < SLOW_DEVICE * median:
            told = f"{name} has {rate / median:.0%} of the median rate: replace its host"
            yield Finding(WARNING, "arithmetic", told)


def all_reduce(mesh: jax.sharding.Mesh, size: int = 0) -> Told:
    """A sum over each axis of the mesh: is it right, and how fast."""
    if mesh.size == 1:
        return [(OK, "one device, nothing to add up")]
    axes = [(axis, count) for axis, count in mesh.shape.items() if count > 1]
    return [_reduce_over(mesh, axis, count, size or REDUCED_BYTES) for axis, count in axes]


def _reduce_over(mesh: jax.sharding.Mesh, axis: str, count: int, size: int) -> tuple[str, str]:
    names = tuple(mesh.shape)
    numbers = size // 4

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(), out_specs=PartitionSpec(names), check_vma=False
    )
    def make() -> jax.Array:
        own = jnp.float32(jax.lax.axis_index(axis) + 1)
        return jnp.full((numbers,), own)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec(names), out_specs=PartitionSpec(names),
        check_vma=False,
    )  # fmt: skip
    def reduce(x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, axis)

    x = jax.jit(make)()
    run = jax.jit(reduce)
    out = run(x).block_until_ready()
    wanted = count * (count + 1) / 2
    right = all((np.asarray(part.data[:8]) == wanted).all() for part in out.addressable_shards)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        run(x).block_until_ready()
        times.append(time.perf_counter() - began)
    rate = 2 * (count - 1) / count * size / min(times)
    told = f"{axis}={count}: {rate / 1e9:.2f} GB/s a device ({size >> 20} MiB, ring)"
    if not right:
        return FAILURE, f"{axis}={count}: the sum is wrong; replace the hardware"
    return OK, told


def data(config: RunConfig, dataset: Any, rows: Sequence[int]) -> Told:
    """Random windows as the run reads them, for a few seconds."""
    from soda_jax.data.loader import Loader

    batches, began = 0, time.perf_counter()
    with Loader(dataset, config.batch_size, 0, rows) as loader:
        while time.perf_counter() - began < READING_SECONDS:
            next(loader)
            batches += 1
    seconds = time.perf_counter() - began
    tokens = batches * len(rows) * config.data.sequence_length
    names = ", ".join(f"{s.name} {s.windows:,}" for s in dataset.sources)
    return [(OK, f"{tokens / seconds:,.0f} tokens/s read on this host; windows: {names}")]


def disk(folder: Path, state_bytes: float, keep: int) -> Told:
    """Whether the checkpoints that are kept have room, where the folder is local."""
    place = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    needed = (keep + 1) * state_bytes
    told = f"{free / 1e9:,.1f} GB free at {place}; {keep} checkpoints and one in the making: {needed / 1e9:,.1f}"
    return [(OK if free > needed else FAILURE, told)]


def checkpoint(mesh: jax.sharding.Mesh, folder: str, size: int = 32 << 20) -> Told:
    """Writes a sharded array as a run does, reads it back and compares every bit.

    Args:
      mesh: of the run.
      folder: of its checkpoints, or gs://…; what is written there is removed.
      size: bytes for each device.
    """
    from etils import epath

    from soda_jax.checkpoints import Checkpointer

    numbers = size // 4 * len(jax.local_devices()) * hosts.process_count() // mesh.size * mesh.size
    laid = NamedSharding(mesh, PartitionSpec(tuple(mesh.shape)))
    state = {"params": {"doctor": jax.jit(lambda: jnp.arange(numbers), out_shardings=laid)()}}
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    place = f"{folder.rstrip('/')}/doctor"
    began = time.perf_counter()
    try:
        with Checkpointer(place, every_steps=1, keep=1) as checkpointer:
            checkpointer.maybe_save(1, state, {"windows": 0}, force=True)
            checkpointer.wait()
            written = time.perf_counter() - began
            began = time.perf_counter()
            restored, _, _ = checkpointer.restore(abstract, 1)
            read = time.perf_counter() - began
    finally:
        hosts.barrier("doctor: checkpoint read", PATIENCE)
        if hosts.is_first() and (left := epath.Path(place)).exists():
            left.rmtree()
    same = all(
        np.array_equal(np.asarray(a.data), np.asarray(b.data))
        for a, b in zip(
            state["params"]["doctor"].addressable_shards,
            restored["params"]["doctor"].addressable_shards,
            strict=True,
        )
    )
    megabytes = numbers * 4 / 1e6
    told = (
        f"{megabytes:,.0f} MB written at {megabytes / written:,.0f} MB/s with its digest, read and "
        f"verified at {megabytes / read:,.0f}"
    )
    if not same:
        told = f"what was read back from {place} is not what was written: do not use this store"
    return [(OK if same else FAILURE, told)]


def clocks() -> float:
    """The clock of this host, read when all have come."""
    hosts.barrier("doctor: all here", PATIENCE)
    return time.time()


def judge_clocks(values: list[Any], number: int) -> Iterator[Finding]:
    """How far the clocks of the hosts are apart."""
    times = [value for value in values if value is not None]
    spread = max(times) - min(times)
    level = FAILURE if spread > CLOCK_FAILURE else WARNING if spread > CLOCK_WARNING else OK
    told = f"{len(times)} clocks within {spread:.2f} s"
    if level != OK:
        told += ": start the time service (NTP) on all hosts"
    yield Finding(level, "clocks", told)


def layout(mesh: jax.sharding.Mesh) -> Told:
    """How the mesh splits batch, width, sequence and heads."""
    split = {name: rules.RULES[name] for name in ("batch", "embed", "sequence", "heads")}
    sizes = {
        name: int(np.prod([mesh.shape[axis] for axis in axes])) for name, axes in split.items()
    }
    told = (
        ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    )
    rows = ", ".join(f"{name} over {size}" for name, size in sizes.items() if size > 1)
    return [(OK, f"{told}{'; ' + rows if rows else ''}")]
