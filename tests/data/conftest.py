"""Small data sets, made in a moment."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from storage_toys import corpus, settings  # noqa: F401, fixtures

from soda_jax.data.format.manifest import Manifest
from soda_jax.data.format.shards import ShardInfo, ShardWriter
from soda_jax.data.format.splitting import split_document
from soda_jax.tokens.documents import Utterance
from soda_jax.tokens.vocabulary import VocabularyLayout

LIMIT = 120
Documents = dict[str, list[Utterance]]


@pytest.fixture
def layout() -> VocabularyLayout:
    """300 text ids, 3 codebooks of unequal sizes."""
    return VocabularyLayout(300, (0, 1, 2), 1, 2, (32, 20, 64))


@pytest.fixture
def make_utterance(layout: VocabularyLayout) -> Callable[..., Utterance]:
    """make_utterance(rng, text ids, frames): random content."""

    def make(rng: np.random.Generator, tokens: int, frames: int) -> Utterance:
        sizes = np.array(layout.codebook_sizes)
        codes = (rng.random((frames, layout.codebooks)) * sizes).astype(np.uint16)
        text = "".join(rng.choice(list("abc é語😀"), tokens))
        return Utterance(text, rng.integers(3, layout.text_size, tokens).astype(np.int32), codes)

    return make


@pytest.fixture
def speech(make_utterance: Callable[..., Utterance]) -> Callable[..., Documents]:
    """speech(count, seed): documents with short utterances, and a few that span several records."""

    def make(count: int = 12, seed: int = 0) -> Documents:
        rng = np.random.default_rng(seed)
        found: Documents = {}
        for number in range(count):
            sizes = [
                (int(rng.integers(1, 9)), int(rng.integers(1, 12))) for _ in range(1 + number % 4)
            ]
            if number % 5 == 1:
                sizes.insert(number % 2, (250, 130))  # longer than a record on both sides
            if number % 5 == 3:
                sizes.append((4, 90))
            found[f"doc/{seed}-{number}"] = [make_utterance(rng, *size) for size in sizes]
        return found

    return make


@pytest.fixture
def text_only(make_utterance: Callable[..., Utterance]) -> Callable[..., Documents]:
    """text_only(count, seed): documents of text, some longer than a record."""

    def make(count: int = 9, seed: int = 0) -> Documents:
        rng = np.random.default_rng(seed)
        lengths = [int(rng.integers(1, 400)) for _ in range(count)]
        return {f"text/{n}": [make_utterance(rng, k, 0)] for n, k in enumerate(lengths)}

    return make


@pytest.fixture
def write(layout: VocabularyLayout) -> Callable[..., Path]:
    """write(directory, documents, …): a data set in two shards a call; appends where there is one."""

    def make(
        directory: Path, documents: Documents, *, split: str = "train", kind: str = "speech",
        codec: str = "codec-a",
    ) -> Path:  # fmt: skip
        old = Manifest.load(directory) if (directory / "manifest.json").exists() else None
        before = dict(old.splits) if old else {}
        earlier = before.get(split, ())
        names: Sequence[str] = list(documents)
        shards: list[ShardInfo] = []
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            file = f"shard-{len(earlier) + len(shards):05d}.array_record"
            writer = ShardWriter(directory / split / file, layout)
            for name in half:
                for record in split_document(name, documents[name], layout, LIMIT):
                    writer.write(record)
            shards.append(writer.close())
        Manifest(
            kind=kind,
            layout=layout,
            codec=None
            if kind == "text"
            else {"name": "toy", "fingerprint": codec, "sample_rate": 16000, "frame_rate": 12.5},
            tokenizer_fingerprint="bytes",
            splits={**before, split: (*earlier, *shards)},
            generation=old.generation + 1 if old else 0,
        ).save(directory)
        return directory

    return make
