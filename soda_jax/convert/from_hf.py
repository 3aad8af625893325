"""A folder of Transformers' Qwen3 as a checkpoint that a run can start from."""

import dataclasses
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from soda_jax.checkpoints import CheckpointReader, folder
from soda_jax.checkpoints.slices import SliceReader
from soda_jax.configs import base
from soda_jax.convert import names, second_reading, verify
from soda_jax.convert.appearing import appearing, check_new
from soda_jax.convert.front_end import read_front_end
from soda_jax.convert.imported import ExtendedWeights
from soda_jax.convert.incoming import NewRows, as_it_is, extended, read_about, read_json
from soda_jax.convert.safetensors_folder import TensorFolder
from soda_jax.convert.stored import read_checksums, write_checkpoint
from soda_jax.convert.to_hf import ABOUT, OURS, Check, Converted
from soda_jax.convert.token_files import check_ends, check_token_files
from soda_jax.convert.weights import StoredWeights, Weights
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, folder_sums
from soda_jax.model import DecoderConfig, decoder_config, rope
from soda_jax.progress import progress
from soda_jax.schema import MODEL_SHAPE
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.text import TextTokenizer

SODA_CODEBOOKS = (2048,) * 8


@dataclasses.dataclass(frozen=True)
class Codec:
    """The codec of a converted model.

    Attributes:
      fingerprint: of it.
      codebook_sizes: number of entries of each codebook.
      name: of it in messages.
      save: writes it into a folder.
    """

    fingerprint: str
    codebook_sizes: tuple[int, ...]
    name: str
    save: Callable[[Path], None]


def from_huggingface(
    source: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    extend: NewRows | None = None,
    codebook_sizes: Sequence[int] | None = None,
    tokenizer: str | None = None,
    codec: Codec | None = None,
    changed: bool = False,
    compare: bool = True,
    further: Check | None = None,
) -> tuple[Converted, DecoderConfig]:
    """Converts a folder.

    Args:
      source: with config.json, safetensors and tokenizer.json.
      workdir: a new or empty folder.
      extend: a model of text gets markers and codebooks; None: it has them.
      codebook_sizes: of the codec; by default those of `codec`, else SODA's.
      tokenizer: the text tokenizer of the data, where the folder is not an export of ours.
      codec: whose codes the audio ids are.
      changed: the tensors were trained further since soda exported them: do not compare them with
        the checksums of then.
      compare: also compare logits before and after.
      further: a check of one's own, of the weights before and after; what it raises undoes all.

    Returns:
      what was done, and the decoder's shape.

    Raises:
      UserError: naming file and tensor, for a folder that is damaged or no Qwen3, a vocabulary that
        disagrees with the tokenizer, a workdir that is not empty; nothing is left behind then.
    """
    began = time.monotonic()
    source, workdir = Path(source), check_new(workdir)
    content = read_json(source / "config.json")
    tensors = TensorFolder(source)
    about = read_about(source)
    sizes = tuple(codebook_sizes) if codebook_sizes else codec.codebook_sizes if codec else None
    check_token_files(source)
    text: TextTokenizer
    if extend is None:
        text, layout = read_front_end(source, sizes, tokenizer)
        check_ends(source, content, layout)
        weights = as_it_is(source, content, tensors, layout)
    else:
        text, layout, weights = extended(source, content, tensors, sizes or SODA_CODEBOOKS, extend)
    fingerprint = _codec_fingerprint(source, codec, layout, about)
    total = sum(np.prod(t.shape) for t in tensors.tensors.values()) * 4 / 1e6
    if about is not None and not changed:
        _check_recorded(weights.config, about, source / "config.json")
        with progress(f"reading {source}, MB", total) as bar:
            mend = (
                "the file is damaged, get it again; or the model was trained further since, then say so "
                "with --changed"
            )
            verify.check_tensors(tensors, about["crc32c"], None, bar, mend)
    length = content.get("max_position_embeddings", 4096)
    if type(length) is not int or length < 1:
        raise UserError(
            f"{source / 'config.json'}: max_position_embeddings is {length!r}; it must be a whole number"
        )
    metadata = _metadata(source, weights.config, layout, text, fingerprint, about, extend, length)
    step = int(about["step"]) if about else 0
    with appearing(workdir) as partial:
        text.save(partial / "tokenizer")
        if codec:
            codec.save(partial / "codec")
        elif (source / OURS / "codec").is_dir():
            shutil.copytree(source / OURS / "codec", partial / "codec")
        metadata["front_end"] = folder_sums(partial, *FRONT_END)
        directory = partial / folder.DEFAULT
        with progress(f"writing {workdir}, MB", 4e-6 * _parameters(weights.config)) as bar:
            sums = write_checkpoint(weights, directory, step, metadata, bar)
        base = weights.base if isinstance(weights, ExtendedWeights) else weights
        second_reading.check(source, base.config, tensors.files)
        result = _verify(weights, directory, step, sums, compare, further)
    parameters = _parameters(weights.config)
    return (
        Converted(parameters, 4 * parameters, time.monotonic() - began, result),
        weights.config,
    )


def _check_recorded(config: DecoderConfig, about: Mapping[str, Any], file: Path) -> None:
    """UserError if `config.json` describes another model than the one that soda exported."""
    if not about["config"].get("model"):
        return
    exported = decoder_config(about["config"]["model"], config.vocabulary)
    first, second = (rope.frequencies(c.head_dim, c.rope) for c in (config, exported))
    for name in (*MODEL_SHAPE, "rope"):
        mine, theirs = getattr(config, name), getattr(exported, name)
        same = np.array_equal(first, second) if name == "rope" else mine == theirs
        if not same:
            raise UserError(
                f"{file}: model.{name} is {mine}, and {theirs} in {ABOUT}: the file was changed since the "
                "export; get it again, or give --changed if that is meant"
            )


def _parameters(config: DecoderConfig) -> int:
    shapes = names.tensor_shapes(config, config.vocabulary.size).values()
    return sum(int(np.prod(shape)) for shape in shapes)


def _codec_fingerprint(
    source: Path,
    codec: Codec | None,
    layout: VocabularyLayout,
    about: Mapping[str, Any] | None,
) -> str | None:
    known = about["codec_fingerprint"] if about else None
    if codec is None:
        return known
    if codec.codebook_sizes != layout.codebook_sizes:
        raise UserError(
            f"the codec {codec.name} has codebooks of {list(codec.codebook_sizes)} entries, the model "
            f"in {source} of {list(layout.codebook_sizes)}; give the codec of that model"
        )
    if known not in (None, codec.fingerprint):
        raise UserError(
            f"the codec {codec.name} has fingerprint {codec.fingerprint}, the model in {source} was "
            f"trained with {known}; give that one"
        )
    return codec.fingerprint


def _metadata(
    source: Path,
    config: DecoderConfig,
    layout: VocabularyLayout,
    tokenizer: TextTokenizer,
    codec_fingerprint: str | None,
    about: Mapping[str, Any] | None,
    extend: NewRows | None,
    sequence_length: int,
) -> dict[str, Any]:
    """What stands beside the arrays, with the keys that a run's checkpoint has."""
    fields = dataclasses.asdict(config)
    del fields["vocabulary"]
    # What it computes in is no part of the model: as a run has it that does not say.
    fields["compute_dtype"] = "bfloat16"
    trained = about or {}
    return {
        "soda_jax": trained.get("trained_with"),
        "jax": jax.__version__,
        "windows": trained.get("windows"),
        "config": {
            **(trained.get("config") or {}),
            "model": fields,
            "data": {"sequence_length": sequence_length},
        },
        "data": _data(about),
        "data_digest": trained.get("data_digest"),
        "layout": layout.to_json(),
        "layout_fingerprint": layout.fingerprint,
        "codec_fingerprint": codec_fingerprint,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "converted_from": {
            "name": source.resolve().name,
            "converted_with": importlib.metadata.version("soda-jax"),
            "sources": trained.get("sources") or [],
            "extended": extend is not None,
            **({} if extend is None else dataclasses.asdict(extend)),
        },
    }


def _data(about: Mapping[str, Any] | None) -> dict[str, Any]:
    """The data of a run as its config has it, but for the paths, which nobody knows here."""
    views = (about or {}).get("views") or {"data": {"weight": 1.0}}
    config = base.default()
    config.data.sources = {name: base.source("", **view) for name, view in views.items()}
    return config.data.to_dict()


def _verify(
    weights: Weights,
    directory: Path,
    step: int,
    sums: Mapping[str, str],
    compare: bool,
    further: Check | None,
) -> verify.Logits | None:
    reader = CheckpointReader(directory)
    reader.choose(step, params_only=True)  # the digest agrees with the files
    after = StoredWeights(SliceReader(reader.path(step)), weights.config)
    with progress("reading it again, MB", 4e-6 * _parameters(weights.config)) as bar:
        found = read_checksums(after, bar)
    for name, crc in sums.items():
        if found[name] != crc:
            raise UserError(
                f"{name} has crc32c {found[name]}, {crc} was written: the disk or the memory of this "
                "machine is not sound"
            )
    result = verify.compare_logits(weights, after) if compare else None
    if further is not None:
        further(weights, after)
    return result
