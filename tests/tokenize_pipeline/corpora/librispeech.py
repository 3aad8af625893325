"""Writes a small LibriSpeech: LibriSpeech/SUBSET/SPEAKER/CHAPTER with FLAC files and one `.trans.txt`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pipeline_toys import sound_bytes, write_files, write_tar

Chapter = Sequence[tuple[str, np.ndarray]]  # (transcript, float32 mono samples)


def corpus_files(chapters: Mapping[str, Chapter], rate: int = 16_000) -> dict[str, bytes]:
    """Returns the files by name, as in the published archives: the files of a chapter are in no order.

    Args:
      chapters: utterances by `SUBSET/SPEAKER/CHAPTER`.
      rate: Hz of the clips.
    """
    files = {f"LibriSpeech/{name}.TXT": b"words\n" for name in ("LICENSE", "README", "CHAPTERS")}
    for chapter, utterances in chapters.items():
        name = "-".join(chapter.split("/")[1:])
        folder = f"LibriSpeech/{chapter}"
        rows = [f"{name}-{n:04d} {text}\n" for n, (text, _) in enumerate(utterances)]
        sounds = [
            (f"{folder}/{name}-{n:04d}.flac", sound_bytes(clip, rate, "flac"))
            for n, (_, clip) in enumerate(utterances)
        ]
        files |= sounds[1::2]
        files[f"{folder}/{name}.trans.txt"] = "".join(rows).encode()
        files |= sounds[::2]
    return files


def write_corpus(
    folder: Path, chapters: Mapping[str, Chapter], *, archive: str = "", rate: int = 16_000
) -> Path:
    """Writes the corpus unpacked, or as the archive of that name; returns the folder or the archive."""
    files = corpus_files(chapters, rate)
    return write_tar(folder / archive, files) if archive else write_files(folder, files)
