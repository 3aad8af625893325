"""A tiny random decoder with a byte tokenizer and a trivial codec."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from soda_jax.generate.engine import Engine
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.text import ByteTokenizer, make_layout

MODEL = {
    "num_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "compute_dtype": "float32",
    "remat": "none",
    "rope": {"theta": 10_000.0, "factor": 1.0},
}


class ToyCodec:
    """Ten frames per second and three codebooks; the codes of a clip are its rounded loudness."""

    name, sample_rate, samples_per_frame, frame_rate = "toy", 1_000, 100, 10.0
    codebook_sizes = (6, 4, 5)
    fingerprint = "toy"

    def encode(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        result = []
        for clip in audio:
            frames = np.pad(clip, (0, -len(clip) % 100)).reshape(-1, 100)
            level = np.round(np.abs(frames).mean(axis=1, keepdims=True) * 100)
            result.append((level % np.array(self.codebook_sizes)).astype(np.uint16))
        return result

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.repeat(c[:, 0] / 10, 100).astype(np.float32) for c in codes]


@pytest.fixture(scope="session")
def layout() -> VocabularyLayout:
    return make_layout(ByteTokenizer(), ToyCodec.codebook_sizes)


@pytest.fixture(scope="session")
def functions(layout: VocabularyLayout) -> ModelFunctions:
    blocks = VocabularyBlocks.of(layout)
    return ModelFunctions(decoder_config(MODEL, blocks))


@pytest.fixture(scope="session")
def params(functions: ModelFunctions) -> Any:
    return jax.jit(functions.init, static_argnums=0)(3)


@pytest.fixture(scope="session")
def engine(functions: ModelFunctions, params: Any, layout: VocabularyLayout) -> Engine:
    return Engine(functions, params, layout, layout.codebooks)


@pytest.fixture(scope="session")
def model(functions: ModelFunctions, params: Any, layout: VocabularyLayout) -> SpeechModel:
    return SpeechModel(
        7,
        {"data": {"sequence_length": 512, "sources": {}}},
        layout,
        functions,
        params,
        tokenizer=ByteTokenizer(),
        codec=ToyCodec(),
        codebooks=3,
    )
