"""A run's folder of a few thousand parameters, as `soda train` leaves it."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from toys import SHAPE, random_params

from soda_jax.checkpoints import Checkpointer
from soda_jax.configs import base
from soda_jax.data.format.manifest import Manifest
from soda_jax.data.format.shards import ShardWriter
from soda_jax.data.format.splitting import split_document
from soda_jax.file_sums import FRONT_END, folder_sums
from soda_jax.files import write_json
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.documents import Utterance
from soda_jax.tokens.text import ByteTokenizer, TextTokenizer, make_layout

CODEBOOKS = (6, 4, 4)
ROPE = {
    "theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position": 32,
}


def fields(**changes: Any) -> dict[str, Any]:
    """The model part of a config; heads × head_dim is not the width."""
    return {
        **SHAPE,
        "intermediate_size": 24,
        "rope": ROPE,
        "rms_norm_eps": 1e-5,
        "tie_embeddings": False,
        **changes,
    }


def blocks(layout: VocabularyLayout) -> VocabularyBlocks:
    """The decoder's view of a layout."""
    return VocabularyBlocks.of(layout)


def metadata_of(
    model: dict[str, Any], tokenizer: TextTokenizer, layout: VocabularyLayout
) -> dict[str, Any]:
    """Returns the metadata of a checkpoint."""
    config = {"model": model, "data": {"sequence_length": 64}, "optimizer": {"peak_lr": 0.003}}
    return {
        "windows": 96,
        "config": config,
        "data": {"sources": {}},
        "data_digest": "d" * 64,
        "layout": layout.to_json(),
        "layout_fingerprint": layout.fingerprint,
        "codec_fingerprint": "c" * 32,
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }


def write_run(
    workdir: Path,
    model: dict[str, Any] | None = None,
    tokenizer: TextTokenizer | None = None,
    seed: int = 0,
    step: int = 7,
    directory: str | None = None,
    sources: dict[str, Any] | None = None,
    started_from: str = "",
) -> tuple[ModelFunctions, dict[str, Any], dict[str, Any]]:
    """Writes a run; returns model, parameters and the checkpoint's metadata."""
    model = model or fields()
    tokenizer = tokenizer or ByteTokenizer()
    layout = make_layout(tokenizer, CODEBOOKS)
    functions = ModelFunctions(decoder_config(model, blocks(layout)))
    params = random_params(functions, seed)
    metadata = metadata_of(model, tokenizer, layout)
    metadata["data"] = {"sources": sources or {}}
    if started_from:
        metadata["started_from"] = {"path": started_from, "step": 5, "data_digest": None}
    tokenizer.save(workdir / "tokenizer")
    write_json(
        workdir / "config.json",
        {**metadata["config"], "checkpoint": {"directory": directory or "checkpoints"}},
    )
    with Checkpointer(directory or workdir / "checkpoints", every_steps=1) as checkpointer:
        checkpointer.maybe_save(step, {"params": params, "moments": params}, metadata, force=True)
    return functions, params, metadata


def write_data(folder: Path, documents: int = 30) -> Path:
    """A data set of random bytes and codes with a validation split, for the model of `write_run`."""
    tokenizer = ByteTokenizer()
    layout = make_layout(tokenizer, CODEBOOKS)
    rng = np.random.default_rng(5)
    splits = {}
    for split in ("train", "validation"):
        writer = ShardWriter(folder / split / "shard-00000.array_record", layout)
        for number in range(documents):
            text = rng.integers(97, 122, 9).astype(np.int32)
            codes = (rng.random((4, 3)) * CODEBOOKS).astype(np.uint16)
            utterance = Utterance(bytes(text.tolist()).decode(), text, codes)
            for record in split_document(f"{split}-{number}", [utterance], layout):
                writer.write(record)
        splits[split] = (writer.close(),)
    codec = {"name": "toy", "fingerprint": "c" * 32, "sample_rate": 16_000, "frame_rate": 12.5}
    tokenizer.save(folder / "tokenizer")
    sums = folder_sums(folder, *FRONT_END)
    Manifest("speech", layout, codec, tokenizer.fingerprint, splits, front_end_files=sums).save(
        folder
    )
    return folder


def tiny(data: Path, **changes: Any) -> ConfigDict:
    """Two steps of the model of `fields` on the data of `write_data`."""
    config = base.default()
    config.steps, config.batch_size = 2, 8
    config.model.update(**{name: x for name, x in fields().items() if name != "rope"})
    config.model.rope.update(**ROPE)
    config.data.sequence_length = 32
    config.data.sources = ConfigDict({"data": base.source(str(data), 1.0)})
    config.log.tensorboard = False
    config.update(changes)
    return config
