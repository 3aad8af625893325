"""The training step of a config, compiled for machines that this one does not have."""

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
from soda_jax.parallel import rules
from soda_jax.plan.costs import Costs, count_costs
from soda_jax.plan.hlo import parse_module
from soda_jax.schema import RunConfig
from soda_jax.tokens import VocabularyLayout
from soda_jax.train.program import Program, make_program

# Products of matrices in each kernel of splash attention: the backward pass computes the scores again.
_SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak, by kind.

    Attributes:
      parameters: f32.
      optimizer: moments and counters.
      batch: token ids and what goes with them.
      temporaries: activations, gradients, gathered weights.
      code: the program.
      host: offloaded to the memory of the host; not part of the total.
    """

    parameters: float
    optimizer: float
    batch: float
    temporaries: float
    code: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """All bytes on the device."""
        return self.parameters + self.optimizer + self.batch + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step.

    Attributes:
      program: mesh, model and functions.
      memory: of one device.
      costs: of one device.
      xla_flops, xla_bytes: of XLA's own analysis, each loop counted once.
      seconds: that compiling took.
    """

    program: Program
    memory: Memory
    costs: Costs
    xla_flops: float
    xla_bytes: float
    seconds: float


class DoesNotFitError(UserError):
    """The compiler found that the step needs more memory than a program can use on a device.

    Attributes:
      needed: bytes on a device.
    """

    def __init__(self, message: str, needed: float):
        """Keeps the message for the user, and the bytes that a device would need."""
        super().__init__(message)
        self.needed = needed


def compile_step(config: RunConfig, layout: VocabularyLayout, devices: Sequence[Any]) -> Step:
    """Compiles the step that `soda train` runs.

    Args:
      config: of the run.
      layout: `VocabularyLayout` of its data.
      devices: of a topology or of this process.

    Raises:
      DoesNotFitError: if the step needs more memory than a device has.
      UserError: where config and devices do not fit each other.
    """
    program = make_program(config, layout, max(1, len(config.data.sources)), devices)
    rows = config.batch_size
    one = empty_batch(1, config.data.sequence_length)._asdict()
    batch = {
        name: jax.ShapeDtypeStruct(
            shape := (rows, *array.shape[1:]),
            array.dtype,
            sharding=rules.batch_sharding(program.mesh, shape),
        )
        for name, array in one.items()
    }
    platform = program.mesh.devices.flat[0].platform
    began = time.perf_counter()
    traced = program.step.trace(program.abstract, batch)
    try:
        compiled = traced.lower(lowering_platforms=(platform,)).compile()
    except Exception as error:  # XLA's and Mosaic's errors have no common class
        raise _compiler_error(error) from None
    seconds = time.perf_counter() - began
    module = parse_module(compiled.as_text())
    costs = count_costs(module, dict(program.mesh.shape), _kernels(config, program))
    analysis = compiled.cost_analysis() or {}
    memory = _memory(program, batch, compiled.memory_analysis())
    flops, moved = (float(analysis.get(name, 0.0)) for name in ("flops", "bytes accessed"))
    return Step(program, memory, costs, flops, moved, seconds)


# What the TPU compiler writes when memory does not suffice. Its K, M, G and T are powers of 1,024.
_TOO_MUCH = (
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
    re.compile(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)
_SIZE = re.compile(r"(?<![\w.%-])([\d.]+)([KMGT])\b")


def _compiler_error(error: Exception) -> UserError:
    """The compiler's message as one line, with its sizes in binary units."""
    for pattern in _TOO_MUCH:
        if found := pattern.search(str(error)):
            needed, room = _bytes(*found.groups()[:2]), _bytes(*found.groups()[2:])
            return DoesNotFitError(
                f"the step needs {needed / GIB:.2f} GiB of the {room / GIB:.2f} GiB of a device",
                needed,
            )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = _SIZE.sub(r"\1 \2iB", reason)[:300]
    return UserError(f"XLA failed to compile the training step: {reason}")


def _bytes(number: str, unit: str) -> float:
    return float(number) * 1024.0 ** (1 + "KMGT".index(unit))


def _kernels(config: RunConfig, program: Program) -> dict[str, float]:
    """FLOPs of the attention kernels on the device that has most: the causal half of the scores.

    Where the sequence is split, the device of its last part sees most of the keys, and the others wait.
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
        # The peak is what the compiler compares with the memory of a device. temp_size counts buffers of a
        # TPU that never exist at the same time, and can exceed that memory in a program that fits.
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
    """Bytes of one device's part of all arrays."""
    return float(
        sum(
            jax.numpy.dtype(leaf.dtype).itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in jax.tree.leaves(tree)
        )
    )
