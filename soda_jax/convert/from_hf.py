"""Converts a Hugging Face folder of a Qwen3 model to a checkpoint that a run can start from."""

import dataclasses
import importlib.metadata
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import jax
import numpy as np

from soda_jax.checked_json import DamagedError, parse_checked_json
from soda_jax.checkpoints import CheckpointReader, folder
from soda_jax.checkpoints.slices import SliceReader
from soda_jax.configs import base
from soda_jax.convert import second_reading, verify
from soda_jax.convert.architecture import decoder_of, integer_field
from soda_jax.convert.card import SOURCE_KEYS
from soda_jax.convert.extend import ExtendedWeights, NewRows, extend_vocabulary
from soda_jax.convert.front_end import check_ends, check_token_files, read_front_end, read_object
from soda_jax.convert.new_folder import atomic_directory, check_new
from soda_jax.convert.qwen3 import HuggingFaceWeights
from soda_jax.convert.safetensors_folder import TensorFolder
from soda_jax.convert.to_hf import ABOUT, FORMAT_VERSION, OURS, VIEW, Check, Converted
from soda_jax.convert.weights import StoredWeights, Weights, checksums, write_checkpoint
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, check_folder, folder_sums
from soda_jax.model import DecoderConfig, VocabularyBlocks, decoder_config, rope
from soda_jax.progress import progress
from soda_jax.schema import MODEL_SHAPE
from soda_jax.tokens.front_end import FrontEnd
from soda_jax.tokens.text import TextTokenizer, make_layout

_SODA_CODEBOOKS = (2048,) * 8


def from_huggingface(
    source: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    extend: NewRows | None = None,
    codebook_sizes: Sequence[int] | None = None,
    tokenizer: str | None = None,
    codec: Any = None,
    codec_spec: str = "",
    changed: bool = False,
    compare: bool = True,
    further: Check | None = None,
) -> tuple[Converted, DecoderConfig]:
    """Converts a Hugging Face folder to a checkpoint in a new workdir.

    Args:
      source: a folder with config.json, safetensors and tokenizer.json.
      workdir: a new or empty folder.
      extend: initialization of the rows for markers and codebooks that are added to a text model;
        None if the model already has them.
      codebook_sizes: number of entries of each codebook. By default, those of `codec`, else those
        that `read_front_end` finds or, with `extend`, SODA's (8 codebooks of 2,048).
      tokenizer: text tokenizer of the data, see `read_front_end`; not needed for an export of
        soda.
      codec: the codec of the audio ids (`soda_jax.codecs.interface.Codec`), copied to the workdir.
      codec_spec: name of the codec in error messages.
      changed: True if the model was trained after soda exported it; the recorded checksums are then
        not compared.
      compare: whether to compare the logits of source and checkpoint.
      further: an additional check of the weights; if it raises, `workdir` is not created.

    Returns:
      a summary of the conversion, and the decoder config.

    Raises:
      UserError: if the folder is damaged or not a Qwen3 model, its vocabulary differs from the
        tokenizer's, or the workdir is not empty. The message contains file and tensor; no partial
        workdir remains.
    """
    began = time.monotonic()
    source, workdir = Path(source), check_new(workdir)
    file = source / "config.json"
    content = read_object(file, required=True)
    tensors = TensorFolder(source)
    about = _read_about(source)
    sizes = tuple(codebook_sizes or (codec.codebook_sizes if codec else ()))
    check_token_files(source)
    size = integer_field(content, "vocab_size", file)
    text: TextTokenizer
    weights: Weights
    if extend is None:
        text, layout = read_front_end(source, sizes or None, tokenizer)
        check_ends(source, content, layout)
        if size != layout.size:
            raise UserError(
                f"{file}: vocab_size is {size}, tokenizer.json has {layout.size} ids; take both from the "
                "same model"
            )
        decoder = decoder_of(content, VocabularyBlocks.of(layout), file)
        weights = HuggingFaceWeights(tensors, decoder, size)
    else:
        text, layout, weights = extend_vocabulary(
            source, content, size, tensors, sizes or _SODA_CODEBOOKS, extend
        )
    config = weights.config
    front_end = FrontEnd(layout, text.fingerprint, about["codec_fingerprint"] if about else None)
    if codec is not None:
        given = FrontEnd(
            make_layout(text, codec.codebook_sizes), text.fingerprint, codec.fingerprint
        )
        fixes = dict.fromkeys(("codec", "vocabulary layout"), "give the codec of that model")
        given.check_same(
            front_end, f"the codec {codec_spec}", f"the model in {source}", fixes=fixes
        )
        front_end = given
    if about is not None and not changed:
        _check_recorded(config, about, file)
        size = sum(t.dtype.itemsize * math.prod(t.shape) for t in tensors.tensors.values())
        with progress(f"reading {source}, MB", size / 1e6) as bar:
            fix = (
                "the file is damaged: download it again; or, if the model was trained after the "
                "export, pass --changed"
            )
            tensors.check_sums(about["crc32c"], None, bar, fix)
    length = integer_field(content, "max_position_embeddings", file, default=4096)
    metadata = _metadata(source, config, front_end, about or {}, extend, length)
    step = about["step"] if about else 0
    with atomic_directory(workdir) as partial:
        text.save(partial / "tokenizer")
        if codec:
            codec.save(partial / "codec")
        elif (source / OURS / "codec").is_dir():
            shutil.copytree(source / OURS / "codec", partial / "codec")
        metadata["front_end"] = folder_sums(partial, *FRONT_END)
        directory = partial / folder.DEFAULT
        with progress(f"writing {workdir}, MB", 4e-6 * config.parameters) as bar:
            written = write_checkpoint(weights, directory, step, metadata, bar)
        converted = weights.base if isinstance(weights, ExtendedWeights) else weights
        second_reading.check(tensors, converted.config)
        reader = CheckpointReader(directory)
        reader.choose(step, params_only=True)  # compares the files with the digest
        after = StoredWeights(SliceReader(reader.path(step)), config)
        with progress("verifying, MB", 4e-6 * config.parameters) as bar:
            found = checksums(after, bar)
        for name, crc in written.items():
            if found[name] != crc:
                raise UserError(
                    f"{name} has crc32c {found[name]}, {crc} was written; check the disk and the memory "
                    "of this machine"
                )
        result = verify.compare_logits(weights, after) if compare else None
        if further is not None:
            further(weights, after)
    seconds = time.monotonic() - began
    return Converted(config.parameters, 4 * config.parameters, seconds, result), config


# Required entries of soda.json and their types.
_ABOUT: dict[str, Any] = {
    "step": int,
    "windows": (int, NoneType),
    **dict.fromkeys(("trained_with", "codec_fingerprint", "data_digest"), (str, NoneType)),
    **dict.fromkeys(("config", "crc32c", "front_end", "views"), dict),
    "sources": list,
}


def _read_about(source: Path) -> dict[str, Any] | None:
    """Returns the content of `soda.json`; None if the folder is not an export of soda.

    Raises:
      UserError: if `soda.json`, or a tokenizer or codec file whose checksum it contains, was
        changed, or the format version is not supported.
    """
    file = source / ABOUT
    if not file.exists():
        return None
    try:
        about = parse_checked_json(file.read_bytes())
    except (OSError, DamagedError) as error:
        raise UserError(f"{file}: {error}; download it again or export the model again") from None
    if about.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{file} has format version {about.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; use the version of soda_jax that wrote it"
        )
    for key, kind in _ABOUT.items():
        value = about.get(key, ...)
        valid = isinstance(value, kind)
        if valid and key == "step":
            valid = 0 <= value < 2**53
        elif valid and key == "views":
            valid = all(isinstance(view, dict) and _is_view(view) for view in value.values())
        elif valid and key == "sources":
            keys = set(SOURCE_KEYS)
            valid = all(isinstance(entry, dict) and entry.keys() == keys for entry in value)
        if not valid:
            raise UserError(f"{file}: {key} is missing or invalid; download it again")
    for name in FRONT_END:
        check_folder(source / OURS, about["front_end"], name)
    return about


def _is_view(view: dict[str, Any]) -> bool:
    return "weight" in view and all(isinstance(view[key], VIEW.get(key, ())) for key in view)


def _check_recorded(config: DecoderConfig, about: Mapping[str, Any], file: Path) -> None:
    """Raises UserError if `config.json` differs from the model that soda exported."""
    if not about["config"].get("model"):
        return
    exported = decoder_config(about["config"]["model"], config.vocabulary)
    first, second = (rope.frequencies(c.head_dim, c.rope) for c in (config, exported))
    for name in (*MODEL_SHAPE, "rope"):
        ours, recorded = getattr(config, name), getattr(exported, name)
        same = np.array_equal(first, second) if name == "rope" else ours == recorded
        if not same:
            raise UserError(
                f"{file}: model.{name} is {ours}, and {recorded} in {ABOUT}: the file was changed "
                "after the export; download it again, or pass --changed if that is intended"
            )


def _metadata(
    source: Path,
    config: DecoderConfig,
    front_end: FrontEnd,
    about: Mapping[str, Any],
    extend: NewRows | None,
    sequence_length: int,
) -> dict[str, Any]:
    """Returns the metadata of the checkpoint, with the same keys as in a training run."""
    fields = dataclasses.asdict(config)
    del fields["vocabulary"]
    fields["compute_dtype"] = "auto"  # the default of a run; `config` has float32
    data = base.default()
    views = about.get("views") or {"data": {"weight": 1.0}}
    # The paths of the data sets are not exported, so they are unknown.
    data.data.sources = {name: base.source("", **view) for name, view in views.items()}
    return {
        "soda_jax": about.get("trained_with"),
        "jax": jax.__version__,
        "windows": about.get("windows"),
        "config": {
            **(about.get("config") or {}),
            "model": fields,
            "data": {"sequence_length": sequence_length},
        },
        "data": data.data.to_dict(),
        "data_digest": about.get("data_digest"),
        **front_end.to_metadata(),
        "converted_from": {
            "name": source.resolve().name,
            "converted_with": importlib.metadata.version("soda-jax"),
            "sources": about.get("sources") or [],
            "extended": extend is not None,
            **({} if extend is None else dataclasses.asdict(extend)),
        },
    }
