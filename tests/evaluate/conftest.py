"""A tiny speech data set and a tiny text one, with validation splits."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from soda_jax.data.format.manifest import Manifest
from soda_jax.data.format.shards import ShardWriter
from soda_jax.data.format.splitting import split_document
from soda_jax.tokens import Utterance, VocabularyLayout
from soda_jax.tokens.text import ByteTokenizer, make_layout

WORDS = ("one", "two", "go left", "stop", "turn back four")
CODEC = {"name": "toy", "fingerprint": "toy", "sample_rate": 1000, "frame_rate": 10.0}


@pytest.fixture
def layout() -> VocabularyLayout:
    return make_layout(ByteTokenizer(), (6, 4, 5))


@pytest.fixture
def write(layout: VocabularyLayout) -> Callable[..., Path]:
    """Returns write(folder, kind, train=20, validation=6, seed=0), which writes a data set."""

    def documents(kind: str, count: int, rng: np.random.Generator) -> list[Utterance]:
        sizes, found = np.array(layout.codebook_sizes), []
        for _ in range(count):
            text = str(rng.choice(WORDS))
            frames = 0 if kind == "text" else int(rng.integers(2, 6))
            codes = (rng.random((frames, 3)) ** 2 * sizes).astype(np.uint16)
            found.append(Utterance(text, ByteTokenizer().encode(text), codes))
        return found

    def make(
        folder: Path, kind: str = "speech", train: int = 20, validation: int = 6, seed: int = 0
    ) -> Path:
        rng, splits = np.random.default_rng(seed), {}
        for split, count in (("train", train), ("validation", validation)):
            if not count:
                continue
            writer = ShardWriter(folder / split / "shard-00000.array_record", layout)
            for number, utterance in enumerate(documents(kind, count, rng)):
                for record in split_document(f"{split}-{number}", [utterance], layout, 8192):
                    writer.write(record)
            splits[split] = (writer.close(),)
        codec = None if kind == "text" else CODEC
        Manifest(kind, layout, codec, ByteTokenizer.fingerprint, splits).save(folder)
        return folder

    return make


@pytest.fixture
def config(tmp_path: Path, write: Callable[..., Path]) -> Mapping:
    """Returns the `data` settings of a speech and a text data set."""
    write(tmp_path / "speech")
    write(tmp_path / "text", "text", seed=1)
    return {
        "sequence_length": 32,
        "sources": {
            "speech": {"path": str(tmp_path / "speech")},
            "text": {
                "path": str(tmp_path / "text"),
                "order": "text_first",
                "composition": "text",
            },
        },
    }
