"""The parts of a run, opened before its first step: data, model, optimizer, checkpoints."""

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import soda_jax
from soda_jax.checked_json import write_checked_json
from soda_jax.checkpoints import Checkpointer, CheckpointReader
from soda_jax.data.dataset import Dataset, make_dataset
from soda_jax.data.storage.locations import absolute, is_url
from soda_jax.errors import UserError
from soda_jax.files import write_json
from soda_jax.hardware import Chip, chip_of
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
from soda_jax.model.attention import backend_for
from soda_jax.parallel import hosts, rules
from soda_jax.parallel.mesh import make_mesh, mesh_sizes, slice_count
from soda_jax.parallel.xla_options import compiler_options
from soda_jax.train.front_end import check_front_end, copy_front_end, front_end_sums
from soda_jax.train.optimizer import make_optimizer
from soda_jax.train.state import State, abstract_state, make_state, state_of
from soda_jax.train.step import StepSettings, make_train_step


def use_compilation_cache() -> None:
    """Keeps compiled programs across runs, in `$SODA_CACHE` or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = os.environ.get("SODA_CACHE") or str(Path(base) / "soda_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def open_data(
    config: Any,
    metadata: dict[str, Any] | None,
    allow_change: bool,
    checkpoint: str | os.PathLike[str] = "the checkpoint",
) -> Dataset:
    """Opens the training mixture; a resumed run reads the generations that it began with.

    Args:
      config: the run's config.
      metadata: of the checkpoint that is resumed, None for a new run.
      allow_change: take other data of the same tokenizer, codec and layout.
      checkpoint: what to call the checkpoint in a message.

    Raises:
      UserError: if tokenizer, codec or layout are not the checkpoint's, or if the data differs in
        another way and `allow_change` is False.
    """
    data = config.data.to_dict()
    if metadata is not None:
        pinned = metadata["data"]["sources"]
        for name, source in data["sources"].items():
            if source.get("generation", -1) == -1 and name in pinned:
                source["generation"] = pinned[name]["generation"]
    dataset = make_dataset(data)
    if metadata is not None:
        check_front_end(dataset, metadata, checkpoint)
    if metadata is not None and not allow_change and dataset.digest != metadata["data_digest"]:
        raise UserError(
            f"the data is not that of the checkpoint (digest {dataset.digest[:12]} against "
            f"{metadata['data_digest'][:12]}: sources, weights, views, seed or sequence length differ); "
            "restore them, use another --workdir, or pass --allow_data_change"
        )
    return dataset


def step_settings(config: Any, classes: int, sources: int) -> StepSettings:
    """`StepSettings` of a config; UserError where batch, micro-batches and mesh do not fit."""
    if config.gradient_accumulation < 1 or config.batch_size % config.gradient_accumulation:
        raise UserError(
            f"batch_size {config.batch_size} is not a multiple of accumulate {config.gradient_accumulation}"
        )
    return StepSettings(
        classes=classes,
        sources=sources,
        gradient_accumulation=config.gradient_accumulation,
        z_loss=config.optimizer.z_loss,
        loss_chunk=config.loss_chunk,
        clip=config.optimizer.max_grad_norm,
        spike_factor=config.safety.spike_factor,
        spike_after=config.safety.spike_after,
    )


@dataclasses.dataclass
class Program:
    """The compiled side of a run.

    Attributes:
      mesh: the devices.
      model: the decoder as functions.
      abstract: the state's shapes and shardings.
      init: () → state, jitted.
      begin: parameters → state at step 0, jitted; the parameters are donated.
      step: (state, batch) → (state, metrics), jitted; the state is donated.
    """

    mesh: jax.sharding.Mesh
    model: ModelFunctions
    abstract: State
    init: Any
    begin: Any
    step: Any


def check_sizes(config: Any, mesh: Mapping[str, int], platform: str) -> None:
    """Refuses a config that does not fit a mesh, before anything is compiled.

    Args:
      config: of the run.
      mesh: sizes of the axes.
      platform: of the devices.

    Raises:
      UserError: where batch, micro-batches, sequence, loss chunk, attention and mesh do not fit.
    """
    step_settings(config, 1, 1)
    backend_for(config.model.attention, platform)
    for name in ("batch_size", "steps"):
        if config[name] < 1:
            raise UserError(f"{name} {config[name]} must be at least 1")
    if config.data.sequence_length < 1:
        raise UserError(f"data.sequence_length {config.data.sequence_length} must be at least 1")
    if config.loss_chunk < 0:
        raise UserError(f"loss_chunk {config.loss_chunk} must be at least 1, or 0: by platform")
    micro = config.batch_size // config.gradient_accumulation
    ways = math.prod(mesh[axis] for axis in rules.RULES["batch"])
    if micro % ways:
        axes = " x ".join(rules.RULES["batch"])
        raise UserError(
            f"batch_size / accumulate = {micro} windows cannot be split over {axes} = {ways} "
            "devices; make it a multiple"
        )
    if config.data.sequence_length % mesh["sequence"]:
        raise UserError(
            f"data.sequence_length {config.data.sequence_length} is not a multiple of mesh.sequence = "
            f"{mesh['sequence']}"
        )


def check_attention(config: Any, chip: Chip | None) -> None:
    """Refuses an attention kernel that does not compile for the chip (None: unknown).

    Raises:
      UserError: for splash on TPU v2 and v3.
    """
    if chip is not None and not chip.kernels:
        name = config.model.attention
        if backend_for(name, "tpu") == "splash":
            raise UserError(
                f"model.attention = {name!r} is the splash kernel, which TPU v2 and v3 cannot run: "
                "set --config.model.attention=xla"
            )


def make_program(
    config: Any,
    layout: Any,
    sources: int,
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Builds the training program of a config.

    Args:
      config: of the run.
      layout: the `VocabularyLayout` of its data.
      sources: number of data sources.
      devices: that it runs on, which need not be here; all devices by default.

    Raises:
      UserError: where batch, sequence, mesh, model and devices do not fit.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices, width = slice_count(devices), config.model.hidden_size
    sizes = mesh_sizes(config.mesh.to_dict(), len(devices), slices, width)
    mesh = make_mesh(sizes, devices)
    check_sizes(config, mesh.shape, mesh.devices.flat[0].platform)
    check_attention(config, chip_of(devices[0].device_kind))
    settings = step_settings(config, len(layout.class_names), sources)
    blocks = VocabularyBlocks(layout.audio_base, layout.codebook_sizes)
    model = ModelFunctions(decoder_config(config.model.to_dict(), blocks))
    optimizer, schedule = make_optimizer(
        config.optimizer, config.steps, model.abstract, model.matrices
    )
    abstract = abstract_state(model, optimizer, mesh)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # The optimizer's state is made inside jit with its shardings, or the first steps recompile.
    init = jax.jit(
        functools.partial(make_state, model, optimizer, config.seed), out_shardings=state_shardings
    )
    begin = jax.jit(
        functools.partial(state_of, optimizer=optimizer),
        donate_argnums=0,
        out_shardings=state_shardings,
    )
    step = jax.jit(
        make_train_step(model, optimizer, schedule, settings, mesh),
        donate_argnums=0,
        out_shardings=(state_shardings, rules.replicated(mesh)),
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )
    return Program(mesh, model, abstract, init, begin, step)


def run_metadata(
    config: Any, dataset: Dataset, windows: int, earlier: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What stands beside the arrays of a checkpoint: enough to resume, to check and to generate.

    `earlier` is that of the checkpoint that was resumed or started from: a model of speech that goes
    on with text alone keeps its codec, and where a run started from stays known.
    """
    codec = dataset.codec_fingerprint
    if codec is None and earlier is not None:
        codec = earlier["codec_fingerprint"]
    origin = {key: value for key, value in (earlier or {}).items() if key == "started_from"}
    # Absolute, so that the data is found from any folder; the digest does not count where it lies.
    sources = {
        name: {**source, "path": absolute(source["path"])}
        for name, source in dataset.config["sources"].items()
    }
    return {
        "soda_jax": soda_jax.__version__,
        "jax": jax.__version__,
        "windows": windows,
        "config": config.to_dict(),
        "data": {**dataset.config, "sources": sources},
        "data_digest": dataset.digest,
        "layout": dataset.layout.to_json(),
        "layout_fingerprint": dataset.layout.fingerprint,
        "codec_fingerprint": codec,
        "tokenizer_fingerprint": dataset.tokenizer_fingerprint,
        "front_end": front_end_sums(dataset, earlier),
        **origin,
    }


def open_checkpoints(config: Any, reader: CheckpointReader) -> Checkpointer:
    """The folder of `reader` for writing, under the policy of the config."""
    policy = config.checkpoint
    return Checkpointer(
        reader.directory,
        every_steps=policy.every_steps or None,
        every_minutes=policy.every_minutes or None,
        keep=policy.keep,
        keep_period=policy.keep_period or None,
        reader=reader,
    )


def write_run_files(
    config: Any, dataset: Dataset, workdir: Path, earlier: Mapping[str, Any] | None = None
) -> None:
    """Writes the resolved config, the data summary and the front end; process 0 only.

    Args:
      config: of the run.
      dataset: that it reads.
      workdir: of the run.
      earlier: metadata of the checkpoint that was resumed or started from.

    Raises:
      UserError: if tokenizer or codec are damaged and no intact copy is known.
    """
    if not hosts.is_primary():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", config.to_dict())
    summary = {"digest": dataset.digest, "config": dataset.config, "sources": dataset.summary()}
    write_checked_json(workdir / "data.json", summary)
    folders = [source["path"] for source in dataset.config["sources"].values()]
    if config.start_from and not is_url(str(config.start_from)):
        folders.append(str(config.start_from))
    copy_front_end(folders, workdir, front_end_sums(dataset, earlier))
    for name, source in dataset.summary().items():
        print(
            f"source {name}: {source['windows']:,} windows, weight {source['weight']:.4f}, "
            f"{source['tail_tokens']:,} tail tokens dropped",
            file=sys.stderr,
        )
