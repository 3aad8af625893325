"""What the tests of training share: data of random codes, a config, batches, a model."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from toys import SHAPE

from soda_jax.configs import base
from soda_jax.data.format.manifest import Manifest
from soda_jax.data.format.shards import ShardWriter
from soda_jax.data.format.splitting import split_document
from soda_jax.data.windows import annotate, empty_batch
from soda_jax.file_sums import FRONT_END, folder_sums
from soda_jax.model import DecoderConfig, ModelFunctions, RopeConfig, VocabularyBlocks
from soda_jax.tokens.documents import Utterance, View, render
from soda_jax.tokens.partition import partition
from soda_jax.tokens.text import ByteTokenizer
from soda_jax.tokens.vocabulary import VocabularyLayout

# 40 text ids and three codebooks of unequal sizes.
LAYOUT = VocabularyLayout(40, (0, 1, 2), 1, 2, (12, 6, 9))
CODEC = {"name": "toy", "fingerprint": "toy", "sample_rate": 16_000, "frame_rate": 12.5}


def random_document(rng: np.random.Generator, utterances: int, audio: bool) -> list[Utterance]:
    """Utterances of a few text ids and, with `audio`, a few frames of random codes."""
    found = []
    for _ in range(utterances):
        text = rng.integers(3, LAYOUT.text_size, rng.integers(2, 9)).astype(np.int32)
        frames = int(rng.integers(2, 7)) if audio else 0
        codes = (rng.random((frames, LAYOUT.codebooks)) * LAYOUT.codebook_sizes).astype(np.uint16)
        found.append(Utterance("x" * len(text), text, codes))
    return found


def write_generation(directory: Path, kind: str, seed: int, documents: int) -> None:
    """Writes one shard of random documents to each split, after the shards that are there."""
    rng = np.random.default_rng(seed)
    old = Manifest.load(directory) if (directory / "manifest.json").exists() else None
    splits = {}
    for split, count in (("train", documents), ("validation", 12)):
        earlier = old.splits[split] if old else ()
        writer = ShardWriter(directory / split / f"shard-{len(earlier):05d}.array_record", LAYOUT)
        for number in range(count):
            audio = kind == "speech"
            document = random_document(rng, int(rng.integers(1, 4)) if audio else 1, audio)
            for record in split_document(f"{kind}/{seed}-{split}-{number}", document, LAYOUT):
                writer.write(record)
        splits[split] = (*earlier, writer.close())
    Manifest(
        kind=kind,
        layout=LAYOUT,
        codec=CODEC if kind == "speech" else None,
        tokenizer_fingerprint="toy",
        splits=splits,
        generation=old.generation + 1 if old else 0,
        front_end_files=old.front_end_files if old else folder_sums(directory, *FRONT_END),
    ).save(directory)


def write_datasets(folder: Path) -> Path:
    """The data sets `speech` and `text` in `folder`."""
    ByteTokenizer().save(folder / "speech" / "tokenizer")
    write_generation(folder / "speech", "speech", 0, 60)
    write_generation(folder / "text", "text", 1, 60)
    return folder


def tiny_config(datasets: Path, **changes: Any) -> ConfigDict:
    """Six steps of a model with a few thousand parameters on eight devices."""
    config = base.default()
    config.steps, config.batch_size = 6, 8
    config.model.update(intermediate_size=32, **SHAPE)
    config.model.rope.update(theta=100.0, factor=1.0)
    config.data.sequence_length = 32
    config.data.sources = ConfigDict(
        {
            "speech": base.source(str(datasets / "speech"), 3.0),
            "text": base.source(
                str(datasets / "text"), 1.0, order="text_first", composition="text"
            ),
        }
    )
    config.optimizer.update(peak_lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8)
    config.loss_chunk = 64
    config.mesh.update(data=4, fsdp=2)
    config.checkpoint.update(every_steps=2, every_minutes=0.0, keep=10)
    config.log.tensorboard = False
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


MODEL = DecoderConfig(
    vocabulary=VocabularyBlocks.of(LAYOUT),
    intermediate_size=32,
    rope=RopeConfig(theta=100.0, factor=1.0),
    **SHAPE,
)


def make_model() -> ModelFunctions:
    return ModelFunctions(MODEL)


def make_batch(rows: int, length: int, seed: int = 0, shares=(1.0,)) -> dict[str, np.ndarray]:
    """Packed windows of whole random documents, as the loader makes them.

    Row r comes from source r % 2 and keeps the share `shares[r % len(shares)]` of its targets.
    """
    rng = np.random.default_rng(seed)
    batch = empty_batch(rows, length, legal_sets=True)
    legal = partition(LAYOUT)
    views = (View("text_first"), View("audio_first"), View("text_first", "text"))
    for row in range(rows):
        stream: list[int] = []
        while len(stream) < length + 7:
            document = random_document(rng, 1, True)
            stream += render(document, views[int(rng.integers(3))], LAYOUT).tolist()
        first = int(rng.integers(7))
        batch.tokens[row] = stream[first : first + length]
        states = legal.states(np.array(stream), legal.rules.start)[first : first + length]
        batch.legal_set[row] = legal.joint_numbers[legal.set_of_state[states]]
        batch.full_offset[row] = row
        batch.source[row] = row % 2
        annotate(batch, row, LAYOUT, [])
        kept = rng.random(length) < shares[row % len(shares)]
        batch.loss_mask[row] *= kept
    return batch.arrays()


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by dotted path, on the host."""
    return {
        ".".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path): (
            np.asarray(leaf)
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
