"""A run's parameters as a folder that Transformers loads."""

import dataclasses
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.checked_json import write_checked_json
from soda_jax.checkpoints import CheckpointReader, folder
from soda_jax.checkpoints.slices import SliceReader
from soda_jax.convert import names, second_reading, verify
from soda_jax.convert.appearing import appearing, check_new
from soda_jax.convert.architecture import config_json, decoder_of, generation_config_json
from soda_jax.convert.card import CardFacts, facts_of_run, model_card
from soda_jax.convert.grammar_files import grammar_files
from soda_jax.convert.imported import HuggingFaceWeights
from soda_jax.convert.safetensors_folder import DTYPES, SHARD_BYTES, TensorFolder, TensorWriter
from soda_jax.convert.tokenizer_files import tokenizer_files
from soda_jax.convert.weights import StoredWeights, Weights, row_blocks, tables
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, FileSums, check_folder, folder_sums
from soda_jax.files import link_or_copy, write_atomic, write_json
from soda_jax.model import decoder_from_metadata
from soda_jax.progress import Progress, progress
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.text import load_tokenizer

FORMAT_VERSION = 2
ABOUT, OURS = "soda.json", "soda"
# Of a data source: how it was read, and not where it lay.
VIEW = ("weight", "order", "composition", "codebooks")
# A larger codec is somebody's published model: it is named, not copied.
_CODEC_BYTES = 32 << 20


# Of weights before and after.
Check = Callable[[Weights, Weights], None]


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
      parameters: number of them, padding not counted.
      bytes: of the tensors written.
      seconds: that it took, the verification included.
      logits: of the verification; None without it.
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
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    compare: bool = True,
    contamination: str | None = None,
    further: Check | None = None,
) -> Converted:
    """Converts a checkpoint of a run.

    Args:
      workdir: of the run.
      out: a new or empty folder.
      step: of the checkpoint; the newest valid one by default.
      dtype: of the tensors, "float32" or "bfloat16".
      shard_bytes: of a file at most; as much is held in memory.
      compare: also compare logits before and after.
      contamination: the report of `soda inspect --contamination`, for the model card.
      further: a check of one's own, of the weights before and after; what it raises undoes all.

    Raises:
      UserError: if there is no valid checkpoint, the tokenizer is not its own, `out` is not empty, or
        what was written is not what was meant; nothing is left behind then.
    """
    out = check_new(out)
    where = folder.local_workdir(workdir)
    if (where / ABOUT).exists():
        raise UserError(f"{where} is an export itself; soda convert from-hf takes it")
    reader = CheckpointReader(folder.of_run(where))
    report = reader.choose(step, params_only=True)
    metadata = reader.metadata(report.step)
    layout = VocabularyLayout.from_json(metadata["layout"])
    config = decoder_from_metadata(metadata, layout)
    weights = StoredWeights(SliceReader(reader.path(report.step)), config)
    return export(
        weights,
        out,
        step=report.step,
        metadata=metadata,
        workdir=where,
        dtype=dtype,
        shard_bytes=shard_bytes,
        compare=compare,
        contamination=contamination,
        further=further,
    )


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
    """Writes `weights` as a folder, which appears when it is whole and verified.

    Several processes that hold `weights` together call it alike, one of them with `write`.

    Args:
      weights: read once to be written, and a second time to be compared.
      out: the folder; nothing is there yet.
      step: training steps behind the weights.
      metadata: of a checkpoint of the run, see `train.run_files.run_metadata`.
      workdir: of the run, with its tokenizer, codec and metrics.
      dtype, shard_bytes, compare, contamination, further: as for `to_huggingface`.
      write: False to walk through `weights` without writing.

    Raises:
      UserError: as `to_huggingface`.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown: {' or '.join(DTYPES)}")
    began = time.monotonic()
    shapes = names.tensor_shapes(weights.config, weights.config.vocabulary.size)
    parameters = sum(int(np.prod(shape)) for shape in shapes.values())
    if not write:
        for _ in _outward(weights):
            pass
        if compare:
            verify.walk(weights, dtype)
        return Converted(parameters, 0, time.monotonic() - began, None)
    # What can be wrong beside the weights comes first: they take long.
    facts = facts_of_run(
        workdir,
        dict(metadata),
        step,
        name=out.resolve().name,
        parameters=parameters,
        dtype=dtype,
        contamination=contamination,
    )
    with appearing(out) as partial:
        layout = _write_front_end(partial, metadata, workdir)
        sequence_length = metadata["config"].get("data", {}).get("sequence_length", 4096)
        about = config_json(weights.config, layout.bos, layout.eos, sequence_length, dtype)
        write_json(partial / "config.json", about)
        write_json(
            partial / "generation_config.json", generation_config_json(layout.bos, layout.eos)
        )
        write_atomic(partial / "README.md", model_card(facts))
        writer = TensorWriter(partial, shapes, dtype, shard_bytes)
        with progress(f"writing {out}, MB", writer.bytes / 1e6) as bar:
            _write_tensors(weights, writer, bar)
        sums = folder_sums(partial / OURS, *FRONT_END)
        write_checked_json(partial / ABOUT, _about(metadata, facts, writer.checksums, sums))
        result = _verify(weights, partial, writer, dtype, compare, further)
    return Converted(parameters, writer.bytes, time.monotonic() - began, result)


def _write_tensors(weights: Weights, writer: TensorWriter, bar: Progress) -> None:
    for name, tensor in _outward(weights):
        writer.add(name, tensor)
        bar.advance(writer.dtype.itemsize * tensor.size / 1e6)
    writer.finish()


def _outward(weights: Weights) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors over there, in the order of `names.tensor_shapes`."""
    config = weights.config

    def table(name: str) -> np.ndarray:
        whole = np.empty((config.vocabulary.size, config.hidden_size), np.float32)
        for first, last in row_blocks(len(whole)):
            whole[first:last] = weights.rows(name, first, last)
        return whole

    yield names.EMBEDDING, table("embedding")
    for number in range(config.num_layers):
        for place, values in _layer_outward(weights.layer(number)):
            yield names.layer_name(number, place), names.outward(values, place)
    yield names.FINAL_NORM, weights.final_norm()
    if "head" in tables(config):
        yield names.HEAD, table("head")


def _layer_outward(layer: Mapping[str, np.ndarray]) -> list[tuple[names.Place, np.ndarray]]:
    return [(place, layer[name]) for name, place in names.LAYER.items()]


def _write_front_end(partial: Path, metadata: Mapping[str, Any], workdir: Path) -> VocabularyLayout:
    layout = VocabularyLayout.from_json(metadata["layout"])
    tokenizer = load_tokenizer(workdir / "tokenizer")
    if tokenizer.fingerprint != metadata["tokenizer_fingerprint"]:
        raise UserError(
            f"{workdir / 'tokenizer'} has fingerprint {tokenizer.fingerprint}, the checkpoint was "
            f"trained with {metadata['tokenizer_fingerprint']}; put the tokenizer of its data set there"
        )
    files = {**tokenizer_files(tokenizer, layout), **grammar_files(layout)}
    for name, content in files.items():
        write_atomic(partial / name, content)
    # As it was, so that whoever converts the folder back has the tokenizer of the same fingerprint.
    tokenizer.save(partial / OURS / "tokenizer")
    codec = workdir / "codec"
    size = sum(path.stat().st_size for path in codec.rglob("*") if path.is_file())
    if codec.is_dir() and size <= _CODEC_BYTES:
        if metadata["codec_fingerprint"] is not None:
            check_folder(workdir, metadata.get("front_end", {}), "codec")
        shutil.copytree(codec, partial / OURS / "codec", copy_function=link_or_copy)
    return layout


def _about(
    metadata: Mapping[str, Any],
    facts: CardFacts,
    checksums: Mapping[str, str],
    front_end: FileSums,
) -> dict[str, Any]:
    """`soda.json`: what Transformers does not ask for, and `from_hf` reads. No paths stand in it."""
    kept = ("layout", "layout_fingerprint", "tokenizer_fingerprint", "codec_fingerprint")
    return {
        "format_version": FORMAT_VERSION,
        "soda_jax": importlib.metadata.version("soda-jax"),
        "trained_with": facts.code_version,
        "step": facts.step,
        "windows": facts.windows,
        "dtype": facts.dtype,
        "data_digest": facts.data_digest,
        **{name: metadata[name] for name in kept},
        "config": {name: metadata["config"].get(name) for name in ("model", "optimizer")},
        "views": {
            name: {key: source[key] for key in VIEW if key in source}
            for name, source in metadata["data"]["sources"].items()
        },
        "sources": [dataclasses.asdict(source) for source in facts.sources],
        "crc32c": dict(checksums),
        "front_end": dict(front_end),
    }


def _verify(
    weights: Weights,
    partial: Path,
    writer: TensorWriter,
    dtype: str,
    compare: bool,
    further: Check | None,
) -> verify.Logits | None:
    written = TensorFolder(partial)
    with progress("reading it again, MB", writer.bytes / 1e6) as bar:
        mend = "see that the disk and the memory of this machine are sound"
        verify.check_tensors(written, writer.checksums, dtype, bar, mend)
    second_reading.check(partial, weights.config, written.files)
    file = partial / "config.json"
    config = decoder_of(json.loads(file.read_text()), weights.config.vocabulary, file)
    after = HuggingFaceWeights(written, config, config.vocabulary.size)
    result = None
    if compare:
        intended = None if dtype == "float32" else verify.RoundedWeights(weights, dtype)
        result = verify.compare_logits(weights, after, intended)
    if further is not None:
        further(weights, after)
    return result
