"""Compiles the training step of a config, also for devices that this machine does not have."""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from soda_jax.data.windows import empty_batch
from soda_jax.errors import UserError
from soda_jax.hardware import GIB
from soda_jax.model.loss import LEGAL_CHUNKS, chunk_tokens
from soda_jax.parallel import rules
from soda_jax.plan.costs import Costs, count_costs
from soda_jax.plan.hlo import parse_module
from soda_jax.schema import RunConfig
from soda_jax.tokens import VocabularyLayout
from soda_jax.train.program import Program, make_program

# Number of matrix products in each splash attention kernel; both backward kernels recompute the
# scores.
_SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
# Out-of-memory errors of the TPU compiler, which uses K, M, G and T for powers of 1,024.
_TOO_MUCH = (
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
    re.compile(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)
_SIZE = re.compile(r"(?<![\w.%-])([\d.]+)([KMGT])\b")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Peak memory of one device in bytes.

    Attributes:
      parameters: f32 parameters.
      optimizer: moments and step counters of the optimizer.
      batch: all arrays of a batch.
      temporaries: activations, gradients, gathered weights and other temporary buffers.
      code: machine code of the program.
      host: bytes offloaded to host memory; not part of `total`.
    """

    parameters: float
    optimizer: float
    batch: float
    temporaries: float
    code: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all parts in device memory."""
        return self.parameters + self.optimizer + self.batch + self.temporaries + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """Memory and costs of one training step on one device.

    Attributes:
      memory: peak memory.
      costs: FLOPs, memory traffic and collectives.
      source: how the numbers were obtained.
      compile_seconds: duration of the compilation; 0 for an estimate.
      xla_flops, xla_bytes: FLOPs and bytes according to XLA's cost analysis, which counts each loop
        body once; 0 for an estimate.
    """

    memory: Memory
    costs: Costs
    source: str
    compile_seconds: float = 0.0
    xla_flops: float = 0.0
    xla_bytes: float = 0.0


class DoesNotFitError(UserError):
    """The training step needs more memory than a program can use on a device.

    Attributes:
      needed: bytes that the step needs per device.
    """

    def __init__(self, message: str, needed: float):
        super().__init__(message)
        self.needed = needed


def compile_step(
    config: RunConfig, layout: VocabularyLayout, devices: Sequence[Any], text_share: float = 0.0
) -> Step:
    """Compiles the training step that `soda train` runs.

    Args:
      config: settings of the run.
      layout: vocabulary layout of the data sets.
      devices: abstract devices of a topology, or devices of this process.
      text_share: share of the positions that are normalized over text, for `model.head` = "legal".

    Raises:
      DoesNotFitError: if the step needs more memory than a device has.
      UserError: if the config is invalid for the devices, or XLA fails to compile the step.
    """
    sources = config.data.sources.values()
    codebooks = [
        1 if source.composition == "S" else source.codebooks or layout.codebooks
        for source in sources
        if source.composition != "text"
    ]
    program = make_program(config, layout, max(1, len(sources)), devices, codebooks)
    one = empty_batch(1, config.data.sequence_length, config.model.head == "legal").arrays()
    batch = {
        name: jax.ShapeDtypeStruct(
            shape := (config.batch_size, *array.shape[1:]),
            array.dtype,
            sharding=rules.batch_sharding(program.mesh, shape),
        )
        for name, array in one.items()
    }
    device = program.mesh.devices.flat[0]
    began = time.perf_counter()
    traced = program.step.trace(program.abstract, batch)
    try:
        compiled = traced.lower(lowering_platforms=(device.platform,)).compile()
    except Exception as error:  # XLA's and Mosaic's errors have no common base class
        raise _compiler_error(error) from None
    seconds = time.perf_counter() - began
    trips = 0
    if config.model.head == "legal":
        shards = rules.ways(program.mesh.shape, "batch") * rules.ways(
            program.mesh.shape, "sequence"
        )
        tokens = config.batch_size * config.data.sequence_length / shards
        tokens /= config.gradient_accumulation
        chunk = chunk_tokens(config.loss_chunk, device.platform, LEGAL_CHUNKS)
        trips = max(1, math.ceil(text_share * tokens / chunk))
    module = parse_module(compiled.as_text())
    analysis = compiled.cost_analysis() or {}
    return Step(
        memory=_memory(program, batch, compiled.memory_analysis()),
        costs=count_costs(module, dict(program.mesh.shape), _kernels(config, program), trips),
        source=f"compiled for {device.device_kind} in {seconds:.0f} s",
        compile_seconds=seconds,
        xla_flops=float(analysis.get("flops", 0.0)),
        xla_bytes=float(analysis.get("bytes accessed", 0.0)),
    )


def _compiler_error(error: Exception) -> UserError:
    """Returns the compiler's error as a one-line UserError with sizes in binary units."""

    def in_bytes(number: str, unit: str) -> float:
        return float(number) * 1024.0 ** (1 + "KMGT".index(unit))

    for pattern in _TOO_MUCH:
        if found := pattern.search(str(error)):
            needed, room = in_bytes(*found.groups()[:2]), in_bytes(*found.groups()[2:])
            return DoesNotFitError(
                f"the step needs {needed / GIB:.2f} GiB, but a device has {room / GIB:.2f} GiB",
                needed,
            )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = _SIZE.sub(r"\1 \2iB", reason)[:300]
    return UserError(f"XLA failed to compile the training step: {reason}")


def _kernels(config: RunConfig, program: Program) -> dict[str, float]:
    """Returns the FLOPs of each attention kernel for the causal half of the scores, by kernel name.

    If the sequence is split, they are for the device with the last shard, whose queries attend to
    the most keys.
    """
    mesh, length = program.mesh, config.data.sequence_length
    rows = config.batch_size // config.gradient_accumulation
    shape = (rows, length, config.model.num_heads, config.model.head_dim)
    axes: tuple[str | None, ...] = ("batch", "sequence", "heads", None)
    if rules.spec(mesh, ("kv_heads",), (config.model.num_kv_heads,)) != rules.spec(
        mesh, ("heads",), shape[2:3]
    ):
        axes = ("batch", "sequence", None, None)  # see model/attention/splash.py
    batch, queries, heads, size = rules.sharding(mesh, axes, shape).shard_shape(shape)
    product = 2.0 * batch * heads * queries * (length - queries / 2) * size
    return {name: count * product for name, count in _SPLASH.items()}


def _memory(program: Program, batch: Any, stats: Any) -> Memory:
    state, inputs = _local_bytes(program.abstract), _local_bytes(batch)
    params = _local_bytes(program.abstract["params"])
    unaliased = max(0, stats.output_size_in_bytes - stats.alias_size_in_bytes)
    temporaries = stats.temp_size_in_bytes + unaliased
    if program.mesh.devices.flat[0].platform == "tpu":
        # On a TPU, temp_size counts buffers that never exist at the same time, so it can exceed the
        # device memory although the program fits. The compiler's own check uses the peak.
        temporaries = stats.peak_memory_in_bytes - state - inputs
    return Memory(
        parameters=params,
        optimizer=state - params,
        batch=inputs,
        temporaries=max(0.0, temporaries),
        code=stats.generated_code_size_in_bytes,
        host=stats.host_temp_size_in_bytes,
    )


def _local_bytes(tree: Any) -> float:
    """Returns the total size of all arrays of a pytree on one device, in bytes."""
    return float(
        sum(
            jax.numpy.dtype(leaf.dtype).itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in jax.tree.leaves(tree)
        )
    )
