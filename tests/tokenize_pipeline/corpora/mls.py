"""Writes a small Multilingual LibriSpeech: CORPUS/train with transcripts.txt, segments.txt and audio."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pipeline_toys import sound_bytes, write_files, write_tar

Row = tuple[str, str, float, str, np.ndarray]  # (utterance, recording, start, text, mono samples)


def corpus_files(
    rows: Sequence[Row], *, corpus: str = "mls_german", split: str = "train", rate: int = 16_000
) -> dict[str, bytes]:
    """Returns the files by name: the sounds in reverse order of the books, then the text files.

    Args:
      rows: utterances in the order of the text files; a segment is as long as its clip.
      corpus: name of the corpus; if it ends with `_opus`, the sounds are `.opus`.
      split: name of the split.
      rate: sample rate of the clips in Hz.
    """
    folder, suffix = f"{corpus}/{split}", "opus" if corpus.endswith("_opus") else "flac"
    transcripts, segments, sounds = "", "", {}
    for utterance, recording, start, text, clip in rows:
        end = start + len(clip) / rate
        speaker, book, _ = utterance.split("_")
        url = f"http://www.archive.org/download/{recording}_64kb.mp3"
        transcripts += f"{utterance}\t{text}\n"
        segments += f"{utterance}\t{url}\t{start:.2f}\t{end:.2f}\n"
        name = f"{folder}/audio/{speaker}/{book}/{utterance}.{suffix}"
        sounds[name] = sound_bytes(clip, rate, suffix)
    books = dict.fromkeys(name.rpartition("/")[0] for name in reversed(sounds))
    files = {n: data for book in books for n, data in sounds.items() if n.startswith(f"{book}/")}
    files[f"{folder}/transcripts.txt"] = transcripts.encode()
    files[f"{folder}/segments.txt"] = segments.encode()
    return {**files, f"{corpus}/metainfo.txt": b" SPEAKER | GENDER \n"}


def write_corpus(
    folder: Path, splits: Mapping[str, Sequence[Row]], *, archive: str = "", **options
) -> Path:
    """Writes the corpus unpacked, or as the archive of that name; returns the folder or the archive."""
    files: dict[str, bytes] = {}
    for split, rows in splits.items():
        files |= corpus_files(rows, split=split, **options)
    return write_tar(folder / archive, files) if archive else write_files(folder, files)
