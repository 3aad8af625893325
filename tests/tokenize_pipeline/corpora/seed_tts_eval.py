"""Writes a small Seed-TTS-eval: seedtts_testset/en with meta.lst, prompts and recordings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pipeline_toys import sound_bytes, write_files, write_tar

# (prompt, text of the prompt, its samples, name, text to be spoken, samples or None)
Item = tuple[str, str, np.ndarray, str, str, np.ndarray | None]


def write_corpus(
    folder: Path,
    items: Sequence[Item],
    *,
    archive: str = "",
    list_name: str = "meta.lst",
    fields: int = 4,
    rate: int = 24_000,
) -> Path:
    """Writes the test set unpacked, or as the archive of that name; returns the list or the archive.

    Args:
      fields: 5 names the recording in each line, as the lists for voice conversion do.
    """
    base, rows = "seedtts_testset/en", ""
    files: dict[str, bytes] = {}
    for prompt, prompt_text, prompt_clip, name, text, clip in items:
        files[f"{base}/prompt-wavs/{prompt}.wav"] = sound_bytes(prompt_clip, rate)
        row = [name, prompt_text, f"prompt-wavs/{prompt}.wav", text, f"wavs/{name}.wav"]
        rows += "|".join(row[:fields]) + "\n"
        if clip is not None:
            files[f"{base}/wavs/{name}.wav"] = sound_bytes(clip, rate)
    files[f"{base}/{list_name}"] = rows.encode()
    if archive:
        return write_tar(folder / archive, files)
    return write_files(folder, files) / base / list_name
