"""Writes a small CVSS-T and Common Voice 4, each unpacked or as an archive."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pipeline_toys import sound_bytes, write_files, write_tar

# (number of the clip, source text, source samples, English text, English samples)
Pair = tuple[int, str, np.ndarray, str, np.ndarray]
COLUMNS = "client_id path sentence up_votes down_votes age gender accent"


def write_cvss(
    folder: Path,
    splits: Mapping[str, Sequence[Pair]],
    *,
    language: str = "de",
    code: str = "",
    archive: str = "",
    rate: int = 24_000,
) -> Path:
    """Writes CVSS-T; returns its folder, or the archive with that suffix.

    Args:
      folder: receives `cvss_t_LANGUAGE_en_v1.0`.
      splits: pairs by split.
      language: code in CVSS-T.
      code: code in Common Voice, if it differs.
      archive: suffix of the archive, such as `.tar.gz`, or empty.
      rate: sample rate of the clips in Hz.
    """
    files: dict[str, bytes] = {}
    for split, pairs in splits.items():
        rows = ""
        for number, _, _, text, clip in reversed(pairs):
            name = clip_name(code or language, number)
            files[f"{split}/{name}.wav"] = sound_bytes(clip, rate)
            rows = f"{name}\t{text}\n{rows}"
        files[f"{split}.tsv"] = rows.encode()
    target = folder / f"cvss_t_{language}_en_v1.0{archive}"
    return write_tar(target, files) if archive else write_files(target, files)


def write_common_voice(
    folder: Path,
    pairs: Sequence[Pair],
    *,
    code: str = "de",
    archive: str = "",
    rate: int = 48_000,
) -> Path:
    """Writes the release of Common Voice with the sources; returns the folder or archive of the language."""
    files: dict[str, bytes] = {}
    rows = "\t".join(COLUMNS.split()) + "\n"
    for number, text, clip, _, _ in sorted(pairs, key=lambda pair: pair[0]):
        name = clip_name(code, number)
        files[f"clips/{name}"] = sound_bytes(clip, rate, "mp3")
        rows += "\t".join([f"client{number}", name, text, "2", "0", "", "", ""]) + "\n"
    files["validated.tsv"] = rows.encode()
    target = folder / "cv-corpus-4-2019-12-10" / f"{code}{archive}"
    return write_tar(target, files) if archive else write_files(target, files)


def clip_name(code: str, number: int) -> str:
    """Returns the name of a clip of Common Voice."""
    return f"common_voice_{code}_{number}.mp3"
