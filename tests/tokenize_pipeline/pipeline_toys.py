"""A toy codec, and functions that write small corpora of hums, for the tests of this folder."""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from soda_jax.data.format.manifest import Manifest
from soda_jax.data.format.reading import read_records
from soda_jax.data.format.splitting import join_records
from soda_jax.files import write_atomic

RATE = 8000


class ToyCodec:
    """Encodes loudness, zero crossings and peak of each tenth of a second; decodes to silence."""

    name = "toy"
    sample_rate = RATE
    samples_per_frame = 800
    frame_rate = 10.0
    codebook_sizes = (16, 8, 5)
    fingerprint = "toy-1"

    def encode(self, audio: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._clip(samples) for samples in audio]

    def _clip(self, samples: np.ndarray) -> np.ndarray:
        frames = -(-len(samples) // self.samples_per_frame)
        padded = np.zeros(frames * self.samples_per_frame, np.float32)
        padded[: len(samples)] = samples
        rows = padded.reshape(frames, -1)
        loud = np.abs(rows).mean(1) * 15
        crossings = (np.diff(np.signbit(rows), axis=1)).mean(1) * 7
        peak = np.abs(rows).max(1) * 4
        return np.stack([loud, crossings, peak], 1).clip(0, (15, 7, 4)).astype(np.uint16)

    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.zeros(len(c) * self.samples_per_frame, np.float32) for c in codes]

    def save(self, directory: str | Path) -> None:
        write_atomic(Path(directory) / "toy.txt", self.fingerprint)


def hum(seconds: float, hertz: float = 200.0, rate: int = RATE) -> np.ndarray:
    """Returns a tone of increasing loudness."""
    time = np.arange(round(seconds * rate)) / rate
    return (np.sin(2 * np.pi * hertz * time) * np.linspace(0.1, 0.9, len(time))).astype(np.float32)


def write_manifest(path: Path, rows: Sequence[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_corpus(folder: Path, documents: int = 6, utterances: int = 3) -> str:
    """Writes a corpus of hums and returns the path of its manifest."""
    rows = []
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for d in range(documents):
        for u in range(utterances):
            name = f"clips/{d}-{u}.wav"
            sound = hum(0.3 + 0.17 * ((d * utterances + u) % 5), 150 + 40 * d)
            soundfile.write(folder / name, sound, RATE)
            rows.append({"audio": name, "text": f" hum {d} {u}\n", "document": f"d{d}", "order": u})
    return write_manifest(folder / "manifest.jsonl", rows)


def tree(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every file of a folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def documents_of(dataset: Path, split: str = "train", generation: int = -1) -> dict[str, list]:
    """Returns the utterances of each document of a data set, by document id, in stored order."""
    manifest = Manifest.load(dataset, generation)
    records: dict[str, list] = {}
    for info in manifest.splits[split]:
        for record in read_records(dataset / split / info.file, manifest.layout):
            records.setdefault(record.document_id, []).append(record)
    return {name: join_records(found) for name, found in records.items()}


def quarantine_of(dataset: Path) -> list[dict]:
    """Returns the rows of quarantine.jsonl."""
    return [json.loads(line) for line in (dataset / "quarantine.jsonl").read_text().splitlines()]


def sound_bytes(samples: np.ndarray, rate: int = RATE, suffix: str = "wav") -> bytes:
    """Returns the bytes of a sound file."""
    content = io.BytesIO()
    opus = {"format": "OGG", "subtype": "OPUS"}
    soundfile.write(content, samples, rate, **(opus if suffix == "opus" else {"format": suffix}))
    return content.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Writes a tar, compressed if its name ends in .gz or .tgz; equal members give equal bytes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    packed = content.getvalue()
    compressed = path.suffix in (".gz", ".tgz")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(packed, 1, mtime=0) if compressed else packed)
    return path


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Writes files by relative path and returns their folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
