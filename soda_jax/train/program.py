"""Builds the training program of a run: mesh, model, optimizer and jitted functions."""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from soda_jax.errors import UserError
from soda_jax.hardware import Chip, chip_of
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
from soda_jax.model.attention import backend_for
from soda_jax.model.legal import LegalSets, legal_sets
from soda_jax.parallel import rules
from soda_jax.parallel.mesh import make_mesh, mesh_sizes, slice_count
from soda_jax.parallel.xla_options import compiler_options
from soda_jax.schema import ModelConfig, RunConfig
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.partition import joint_sets
from soda_jax.train.optimizer import make_optimizer
from soda_jax.train.schedules import Lengths, lengths_of
from soda_jax.train.state import State, abstract_state, make_state, state_from_params
from soda_jax.train.step import make_train_step


def use_compilation_cache() -> None:
    """Enables JAX's persistent compilation cache in `$SODA_CACHE` or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = os.environ.get("SODA_CACHE") or str(Path(base) / "soda_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


class Rates(NamedTuple):
    """Hyperparameters that are data of the compiled step, not constants in it.

    Attributes:
      peak_lr: learning rate after warmup, f32.
      lengths: lengths of the schedule, int32.
    """

    peak_lr: Any
    lengths: Lengths

    @classmethod
    def of(cls, config: RunConfig) -> "Rates":
        """Returns the values of a config.

        Raises:
          UserError: for an invalid schedule.
        """
        lengths = lengths_of(config.optimizer, config.steps)
        return cls(np.float32(config.optimizer.peak_lr), Lengths(*map(np.int32, lengths)))


@dataclasses.dataclass
class TrainStep:
    """The jitted step (state, batch) → (state, metrics); the state is donated.

    Attributes:
      jitted: (state, batch, rates) → (state, metrics).
      rates: learning rate and lengths of the run.
    """

    jitted: Any
    rates: Rates

    def __call__(self, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        """Runs a step."""
        return self.jitted(state, batch, self.rates)

    def trace(self, state: Any, batch: Any) -> Any:
        """Traces the step for abstract or concrete arguments, like a jitted function."""
        return self.jitted.trace(state, batch, self.rates)


@dataclasses.dataclass
class Program:
    """The mesh, the model and the jitted functions of a run.

    Attributes:
      mesh: the device mesh.
      model: the decoder, see `ModelFunctions`.
      abstract: shapes, dtypes and shardings of the training state.
      init: () → state, jitted.
      begin: parameters → state at step 0, jitted; the parameters are donated.
      step: the training step.
    """

    mesh: jax.sharding.Mesh
    model: ModelFunctions
    abstract: State
    init: Any
    begin: Any
    step: TrainStep


def check_sizes(config: RunConfig, mesh: Mapping[str, int], platform: str) -> None:
    """Checks that a config fits a mesh; called before anything is compiled.

    Args:
      config: settings of the run.
      mesh: size of each mesh axis.
      platform: platform of the devices.

    Raises:
      UserError: if the micro-batch, the sequence length or the attention backend does not fit.
    """
    backend_for(config.model.attention, platform)
    micro_batch = config.batch_size // config.gradient_accumulation
    ways = rules.ways(mesh, "batch")
    if micro_batch % ways:
        axes = " x ".join(rules.RULES["batch"])
        raise UserError(
            f"batch_size / gradient_accumulation = {micro_batch} windows cannot be split over {axes} = "
            f"{ways} devices; make it a multiple of {ways}"
        )
    sequence_ways = rules.ways(mesh, "sequence")
    if config.data.sequence_length % sequence_ways:
        raise UserError(
            f"data.sequence_length {config.data.sequence_length} is not a multiple of mesh.sequence = "
            f"{sequence_ways}; change one of them"
        )


def check_attention(config: RunConfig, chip: Chip | None) -> None:
    """Checks that the attention kernel compiles for `chip`; does nothing if `chip` is None.

    Raises:
      UserError: for the splash kernel on TPU v2 or v3.
    """
    if chip is not None and not chip.kernels:
        name = config.model.attention
        if backend_for(name, "tpu") == "splash":
            raise UserError(
                f"model.attention = {name!r} selects the splash kernel, which TPU v2 and v3 cannot "
                "run: set --config.model.attention=xla"
            )


def sets_of_head(
    model: ModelConfig, layout: VocabularyLayout, codebooks: Sequence[int] = ()
) -> LegalSets | None:
    """Returns the legal sets over which `model.head` normalizes; None for all ids.

    Args:
      model: `model` settings of the run.
      layout: vocabulary layout of the data.
      codebooks: numbers of codebooks in the streams of the sources; by default all of `layout`.

    Raises:
      UserError: if `model.full_every` would sample only some of the codebooks of an utterance.
    """
    if model.head == "full":
        return None
    counts = sorted(set(codebooks)) or [layout.codebooks]
    for count in counts:
        if model.full_every and math.gcd(model.full_every, max(count, 1)) > 1:
            raise UserError(
                f"model.full_every = {model.full_every} and the {count} codebooks of a source have a "
                "common divisor, so that the samples of an utterance would miss some codebooks; use a prime "
                "number"
            )
    return legal_sets(VocabularyBlocks.of(layout), *joint_sets(layout, counts))


def make_program(
    config: RunConfig,
    layout: VocabularyLayout,
    sources: int,
    devices: Sequence[jax.Device] | None = None,
    codebooks: Sequence[int] = (),
) -> Program:
    """Builds the training program of a config.

    Args:
      config: settings of the run.
      layout: vocabulary layout of the data.
      sources: number of data sources.
      devices: the devices to compile for; by default all. They may be from a topology description.
      codebooks: numbers of codebooks in the streams of the sources, for `model.head` = "legal"; by
        default all codebooks of `layout`.

    Raises:
      UserError: if batch size, sequence length, mesh, model and devices do not fit together.
    """
    devices = list(jax.devices() if devices is None else devices)
    axes = dataclasses.asdict(config.mesh)
    sizes = mesh_sizes(axes, len(devices), slice_count(devices), config.model.hidden_size)
    mesh = make_mesh(sizes, devices)
    platform = mesh.devices.flat[0].platform
    check_sizes(config, mesh.shape, platform)
    check_attention(config, chip_of(devices[0].device_kind))
    blocks = VocabularyBlocks.of(layout)
    model = ModelFunctions(decoder_config(config.model, blocks))
    rates = Rates.of(config)
    optimizer, _ = make_optimizer(config.optimizer, config.steps, model.abstract, model.matrices)
    abstract = abstract_state(model, optimizer, mesh)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # The optimizer state is created inside jit with its shardings; otherwise the first steps
    # recompile.
    init = jax.jit(
        functools.partial(make_state, model, optimizer, config.seed), out_shardings=state_shardings
    )
    begin = jax.jit(
        functools.partial(state_from_params, optimizer=optimizer),
        donate_argnums=0,
        out_shardings=state_shardings,
    )
    legal = sets_of_head(config.model, layout, codebooks)

    def train_step(state: State, batch: Any, rates: Rates) -> tuple[State, dict[str, jax.Array]]:
        # Made here, so that runs that differ only in `Rates` share one compiled step.
        settings = dataclasses.replace(config.optimizer, peak_lr=rates.peak_lr)
        made = make_optimizer(settings, rates.lengths, model.abstract, model.matrices)
        step = make_train_step(
            model,
            *made,
            config,
            mesh,
            classes=len(layout.class_names),
            sources=sources,
            legal=legal,
        )
        return step(state, batch)

    step = jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(state_shardings, rules.replicated(mesh)),
        compiler_options=compiler_options(platform),
    )
    return Program(mesh, model, abstract, init, begin, TrainStep(step, rates))
