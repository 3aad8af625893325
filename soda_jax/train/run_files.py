"""Opens the data and checkpoints of a run, and writes config, data summary and front end."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import soda_jax
from soda_jax.checked_json import write_checked_json
from soda_jax.checkpoints import Checkpointer, CheckpointReader
from soda_jax.data.dataset import Dataset, make_dataset
from soda_jax.data.storage.locations import absolute
from soda_jax.files import is_url, write_json
from soda_jax.parallel import hosts
from soda_jax.schema import CheckpointConfig, DataConfig, RunConfig, to_dict
from soda_jax.train.front_end import copy_front_end, front_end_sums
from soda_jax.train.start import Start


def open_data(
    config: DataConfig, start: Start, allow_change: bool, *, legal_sets: bool = False
) -> Dataset:
    """Opens the training mixture; a resumed run reads the same generations as before.

    Args:
      config: the `data` settings of the run.
      start: initial state of the run, see `train.start`.
      allow_change: accept other data with the same tokenizer, codec and layout.
      legal_sets: whether batches contain the legal set of every position.

    Raises:
      UserError: if the tokenizer, codec or layout differs from the checkpoint, or if the data of a
        resumed run differs in any other way and `allow_change` is False.
    """
    sources = {
        name: dataclasses.replace(source, generation=start.generations.get(name, -1))
        if source.generation == -1
        else source
        for name, source in config.sources.items()
    }
    config = dataclasses.replace(config, sources=sources)
    dataset = make_dataset(config, legal_sets=legal_sets)
    start.check_data(dataset, allow_change)
    return dataset


def run_metadata(
    config: RunConfig, dataset: Dataset, windows: int, earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the metadata of a checkpoint, which resuming, verification and generation read.

    Args:
      config: settings of the run.
      dataset: the training mixture.
      windows: number of windows consumed.
      earlier: metadata of the checkpoint that the run resumed or started from. `started_from` is
        copied from it, and so is the codec fingerprint if the data has no codec.
    """
    front_end = dataset.front_end
    if front_end.codec is None and earlier is not None:
        front_end = dataclasses.replace(front_end, codec=earlier["codec_fingerprint"])
    origin = {key: value for key, value in (earlier or {}).items() if key == "started_from"}
    data = to_dict(dataset.config)
    for source in data["sources"].values():
        # The path is absolute, so that it is valid in any working directory. It is not in the
        # digest.
        source["path"] = absolute(source["path"])
    return {
        "soda_jax": soda_jax.__version__,
        "jax": jax.__version__,
        "windows": windows,
        "config": to_dict(config),
        "data": data,
        "data_digest": dataset.digest,
        **front_end.to_metadata(),
        "front_end": front_end_sums(dataset, earlier),
        **origin,
    }


def open_checkpoints(config: CheckpointConfig, reader: CheckpointReader) -> Checkpointer:
    """Returns a `Checkpointer` for the folder of `reader` with the settings of the config."""
    return Checkpointer(
        reader.directory,
        every_steps=config.every_steps or None,
        every_minutes=config.every_minutes or None,
        keep=config.keep,
        keep_period=config.keep_period or None,
        reader=reader,
    )


def write_run_files(
    config: RunConfig, dataset: Dataset, workdir: Path, earlier: Mapping[str, Any] | None = None
) -> None:
    """Writes the resolved config, the data summary and the front end; only process 0 writes.

    Args:
      config: settings of the run.
      dataset: the training mixture.
      workdir: workdir of the run.
      earlier: metadata of the checkpoint that the run resumed or started from.

    Raises:
      UserError: if the tokenizer or codec is damaged and no intact copy is found.
    """
    if not hosts.is_primary():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", to_dict(config))
    summary = dataset.summary()
    write_checked_json(
        workdir / "data.json",
        {"digest": dataset.digest, "config": to_dict(dataset.config), "sources": summary},
    )
    folders = [source.path for source in dataset.config.sources.values()]
    if config.start_from and not is_url(config.start_from):
        folders.append(config.start_from)
    copy_front_end(folders, workdir, front_end_sums(dataset, earlier))
    for name, source in summary.items():
        print(
            f"source {name}: {source['windows']:,} windows, weight {source['weight']:.4f}, "
            f"{source['tail_tokens']:,} tail tokens dropped",
            file=sys.stderr,
        )
