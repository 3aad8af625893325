"""Converts the parameters of a run to a folder that Transformers loads."""

import dataclasses
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.checked_json import write_checked_json
from soda_jax.checkpoints import CheckpointReader, folder
from soda_jax.checkpoints.slices import SliceReader
from soda_jax.convert import second_reading, verify
from soda_jax.convert.architecture import config_json, decoder_of, generation_config_json
from soda_jax.convert.card import data_sources, model_card
from soda_jax.convert.grammar_files import grammar_files
from soda_jax.convert.new_folder import atomic_directory, check_new
from soda_jax.convert.qwen3 import HuggingFaceWeights, exported_tensors, tensor_shapes
from soda_jax.convert.safetensors_folder import DTYPES, SHARD_BYTES, TensorFolder, write_tensors
from soda_jax.convert.tokenizer_files import tokenizer_files
from soda_jax.convert.weights import StoredWeights, Weights
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, check_folder, folder_sums
from soda_jax.files import link_or_copy, write_atomic, write_json
from soda_jax.model import decoder_from_metadata
from soda_jax.progress import progress
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.front_end import FrontEnd
from soda_jax.tokens.text import load_tokenizer

FORMAT_VERSION = 2
ABOUT, OURS = "soda.json", "soda"
# Exported fields of a data source and their types; paths are not exported.
VIEW: dict[str, Any] = {"weight": (int, float), "order": str, "composition": str, "codebooks": int}
# A larger codec, such as Mimi, is not copied; only its fingerprint is exported.
_CODEC_BYTES = 32 << 20

# Called with the weights before and after a conversion; raises UserError if they differ.
Check = Callable[[Weights, Weights], None]


@dataclasses.dataclass(frozen=True)
class Converted:
    """Summary of a conversion.

    Attributes:
      parameters: number of parameters without padding.
      bytes: size of the tensors written.
      seconds: duration, including verification.
      logits: result of the comparison of logits; None if they were not compared.
    """

    parameters: int
    bytes: int
    seconds: float
    logits: verify.Logits | None


def to_huggingface(
    workdir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    step: int | None = None,
    **options: Any,
) -> Converted:
    """Writes a checkpoint of a run as a Hugging Face folder.

    Args:
      workdir: workdir of the run.
      out: a new or empty folder.
      step: step of the checkpoint; the newest valid one by default.
      options: further arguments of `export`.

    Raises:
      UserError: if there is no valid checkpoint, `out` is not empty, or `export` fails.
    """
    out = check_new(out)
    run = folder.local_workdir(workdir)
    if (run / ABOUT).exists():
        raise UserError(f"{run} is an export; convert it with soda convert from-hf")
    reader = CheckpointReader(folder.of_run(run))
    step = reader.choose(step, params_only=True).step
    metadata = reader.metadata(step)
    layout = VocabularyLayout.from_json(metadata["layout"])
    config = decoder_from_metadata(metadata, layout)
    weights = StoredWeights(SliceReader(reader.path(step)), config)
    return export(weights, out, step=step, metadata=metadata, workdir=run, **options)


def export(
    weights: Weights,
    out: Path,
    *,
    step: int,
    metadata: Mapping[str, Any],
    workdir: Path,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    compare: bool = True,
    contamination: str | None = None,
    further: Check | None = None,
    write: bool = True,
) -> Converted:
    """Writes `weights` as a folder, which appears only when it is complete and verified.

    All processes that share `weights` must call this function with the same arguments, except that
    `write` must be True in exactly one of them.

    Args:
      weights: the parameters, which are read once for writing and again for each comparison.
      out: an absent or empty folder.
      step: number of optimizer steps that produced the weights.
      metadata: metadata of the checkpoint, see `soda_jax.train.run_files.run_metadata`.
      workdir: workdir of the run, with its tokenizer, codec and metrics.
      dtype: dtype of the tensors, "float32" or "bfloat16".
      shard_bytes: maximum size of a file, see `write_tensors`.
      compare: whether to compare the logits of source and export.
      contamination: report file written by `soda inspect --contamination`, for the model card.
      further: an additional check of the weights; if it raises, `out` is not created.
      write: False to make the same reads of `weights` without writing anything.

    Raises:
      UserError: if the tokenizer is not the run's, a file cannot be written, or a check fails; no
        partial folder remains.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown: {' or '.join(DTYPES)}")
    began = time.monotonic()
    config = weights.config
    if not write:
        for _ in exported_tensors(weights):
            pass
        if compare:
            verify.logits_of_source(weights, dtype)
        return Converted(config.parameters, 0, time.monotonic() - began, None)
    # Writing the weights takes long, so everything that can fail without them is done first.
    card = model_card(
        workdir,
        metadata,
        step,
        name=out.resolve().name,
        parameters=config.parameters,
        dtype=dtype,
        contamination=contamination,
    )
    size = config.parameters * np.dtype(DTYPES[dtype]).itemsize
    with atomic_directory(out) as partial:
        layout = _write_front_end(partial, metadata, workdir)
        length = metadata["config"].get("data", {}).get("sequence_length", 4096)
        about = config_json(config, layout.bos, layout.eos, length, dtype)
        write_json(partial / "config.json", about)
        write_json(
            partial / "generation_config.json", generation_config_json(layout.bos, layout.eos)
        )
        write_atomic(partial / "README.md", card)
        shapes = tensor_shapes(config, config.vocabulary.size)
        with progress(f"writing {out}, MB", size / 1e6) as bar:
            sums = write_tensors(
                partial, shapes, exported_tensors(weights), dtype, shard_bytes, bar
            )
        record = {
            "format_version": FORMAT_VERSION,
            "soda_jax": importlib.metadata.version("soda-jax"),
            "trained_with": metadata.get("soda_jax"),
            "step": step,
            "windows": metadata.get("windows"),
            "dtype": dtype,
            "data_digest": metadata.get("data_digest"),
            **FrontEnd.from_metadata(metadata).to_metadata(),
            "config": {name: metadata["config"].get(name) for name in ("model", "optimizer")},
            "views": {
                name: {key: source[key] for key in VIEW if key in source}
                for name, source in metadata["data"]["sources"].items()
            },
            "sources": data_sources(workdir, metadata),
            "crc32c": sums,
            "front_end": folder_sums(partial / OURS, *FRONT_END),
        }
        write_checked_json(partial / ABOUT, record)
        written = TensorFolder(partial)
        with progress("verifying, MB", size / 1e6) as bar:
            written.check_sums(sums, dtype, bar, "check the disk and the memory of this machine")
        second_reading.check(written, config)
        file = partial / "config.json"
        found = decoder_of(json.loads(file.read_text()), config.vocabulary, file)
        after = HuggingFaceWeights(written, found, config.vocabulary.size)
        result = verify.compare_logits(weights, after, dtype) if compare else None
        if further is not None:
            further(weights, after)
    return Converted(config.parameters, size, time.monotonic() - began, result)


def _write_front_end(partial: Path, metadata: Mapping[str, Any], workdir: Path) -> VocabularyLayout:
    front_end = FrontEnd.from_metadata(metadata)
    layout = front_end.layout
    tokenizer = load_tokenizer(workdir / "tokenizer")
    fixes = {"tokenizer": "copy the tokenizer of its data set there"}
    found = dataclasses.replace(front_end, tokenizer=tokenizer.fingerprint)
    found.check_same(front_end, str(workdir / "tokenizer"), "the checkpoint", fixes=fixes)
    files = {**tokenizer_files(tokenizer, layout), **grammar_files(layout)}
    for name, content in files.items():
        write_atomic(partial / name, content)
    # from-hf restores the tokenizer from this copy; only the original has the run's fingerprint.
    tokenizer.save(partial / OURS / "tokenizer")
    codec = workdir / "codec"
    size = sum(path.stat().st_size for path in codec.rglob("*") if path.is_file())
    if codec.is_dir() and size <= _CODEC_BYTES:
        if metadata["codec_fingerprint"] is not None:
            check_folder(workdir, metadata.get("front_end", {}), "codec")
        shutil.copytree(codec, partial / OURS / "codec", copy_function=link_or_copy)
    return layout
