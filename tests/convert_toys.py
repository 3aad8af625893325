"""A run's folder of a few thousand parameters, as `soda train` leaves it."""

from pathlib import Path
from typing import Any

from toys import SHAPE, random_params

from soda_jax.checkpoints import Checkpointer
from soda_jax.files import write_json
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.text import ByteTokenizer, TextTokenizer, make_layout

CODEBOOKS = (6, 4, 4)
ROPE = {"theta": 10_000.0, "factor": 4.0, "low": 1.0, "high": 4.0, "original_length": 32}


def fields(**changes: Any) -> dict[str, Any]:
    """The model part of a config; heads × head_dim is not the width."""
    return {**SHAPE, "mlp_width": 24, "rope": ROPE, "norm_eps": 1e-5, "tied": False, **changes}


def blocks(layout: VocabularyLayout) -> VocabularyBlocks:
    """The decoder's view of a layout."""
    return VocabularyBlocks(layout.audio_base, layout.codebook_sizes)


def write_run(
    workdir: Path,
    model: dict[str, Any] | None = None,
    tokenizer: TextTokenizer | None = None,
    seed: int = 0,
    step: int = 7,
) -> tuple[ModelFunctions, dict[str, Any], dict[str, Any]]:
    """Writes a run; returns model, parameters and the checkpoint's metadata."""
    model = model or fields()
    tokenizer = tokenizer or ByteTokenizer()
    layout = make_layout(tokenizer, CODEBOOKS)
    functions = ModelFunctions(decoder_config(model, blocks(layout)))
    params = random_params(functions, seed)
    config = {"model": model, "data": {"sequence_length": 64}, "optimizer": {"peak": 0.003}}
    metadata = {
        "windows": 96,
        "config": config,
        "data": {"sources": {}},
        "data_digest": "d" * 64,
        "layout": layout.to_json(),
        "layout_fingerprint": layout.fingerprint,
        "codec_fingerprint": "c" * 32,
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    tokenizer.save(workdir / "tokenizer")
    write_json(workdir / "config.json", {**config, "checkpoint": {"directory": "checkpoints"}})
    with Checkpointer(workdir / "checkpoints", every_steps=1) as checkpointer:
        checkpointer.maybe_save(step, {"params": params, "moments": params}, metadata, force=True)
    return functions, params, metadata
