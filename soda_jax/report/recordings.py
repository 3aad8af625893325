"""Reads generated speech and its texts from the folder that `soda generate … batch` writes.

FOLDER/results.jsonl    one JSON object per line: name, audio (path of a sound file in FOLDER), text, finished
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from soda_jax.codecs.audio import AudioError, read_audio
from soda_jax.errors import UserError
from soda_jax.report.content import Clip, Sample

MANIFEST = "results.jsonl"
# Limits that keep a page small: Hz, and seconds of each clip.
_RATE, _LONGEST = 24_000, 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class Recordings:
    """Samples of a folder.

    Attributes:
      title: label of the run, or the folder.
      samples: the first ones, in the order of the manifest.
      total: number of rows with audio in the manifest.
    """

    title: str
    samples: tuple[Sample, ...]
    total: int


def read_recordings(folder: Path, title: str, count: int) -> Recordings:
    """Reads the first `count` samples of a folder.

    A clip that cannot be shown, for example because it is silent, is replaced by a note. Rows without
    `audio`, such as transcripts, are not samples.

    Raises:
      UserError: if the manifest is missing or damaged, or names a sound file that does not exist.
    """
    path = folder / MANIFEST
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): give the output folder of soda generate … batch"
        ) from None
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _row(path, number, line)
            if row.get("audio"):
                rows.append((f"{path}:{number}", row))
    samples = tuple(_sample(folder, where, row) for where, row in rows[:count])
    return Recordings(title, samples, len(rows))


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{number} is not JSON ({error}): remove the line") from None
    if not isinstance(row, dict) or not isinstance(row.get("audio", ""), str | None):
        raise UserError(f"{path}:{number} is not an object with name, audio and text: remove it")
    return row


def _sample(folder: Path, where: str, row: dict[str, Any]) -> Sample:
    sound = folder / row["audio"]
    if not sound.is_file():
        raise UserError(f"{where}: {sound} does not exist: restore it or remove the line")
    notes, clips = [], []
    try:
        # The end may be at most half a second after the end of a file, so it is cut here.
        audio = read_audio(sound, _RATE)
        seconds = len(audio) / _RATE
        clips.append(Clip("generated speech", audio[: round(_LONGEST * _RATE)]))
        if seconds > _LONGEST:
            notes.append(f"The first {_LONGEST:g} s of {seconds:.1f} s.")
    except AudioError as error:
        notes.append(f"No player: {error}")
    if row.get("finished") is False:
        notes.append("The length limit ended the utterance.")
    return Sample(
        kind="speak",
        title=str(row.get("name", sound.stem)),
        sample_rate=_RATE,
        clips=clips,
        prompt_text=str(row.get("text", "")),
        note=" ".join(notes),
    )
