"""Tar archives and sound files in memory, for the writers of corpora."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile


def sound_bytes(clip: np.ndarray, rate: int, kind: str) -> bytes:
    """A sound file of `kind` ("WAV", "MP3", "FLAC") from float32 mono `[samples]`."""
    buffer = io.BytesIO()
    soundfile.write(buffer, clip, rate, format=kind)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Writes (name, content) pairs in their order, compressed if the name ends in `.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
