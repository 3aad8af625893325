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
      failed: number of items that failed.
      silent: number of other rows without audio.
    """

    title: str
    samples: tuple[Sample, ...]
    total: int
    failed: int = 0
    silent: int = 0


def read_recordings(folder: Path, title: str, count: int) -> Recordings:
    """Reads the first `count` samples of a folder.

    A clip that cannot be shown, for example because it is silent, is replaced by a note. Rows without
    `audio` are counted and are not samples. A last line that was cut, of a batch that was stopped, is skipped.

    Raises:
      UserError: if the manifest is missing or damaged, or names a sound file that does not exist.
    """
    path = folder / MANIFEST
    try:
        *lines, last = path.read_bytes().split(b"\n")
        whole = [line.decode("utf-8") for line in lines]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): give the output folder of soda generate … batch"
        ) from None
    if _is_json(last):  # written by hand or by another program, without an end of line
        whole.append(last.decode("utf-8"))
    rows = [(f"{path}:{n}", _row(path, n, line)) for n, line in enumerate(whole, 1) if line.strip()]
    heard = [(where, row) for where, row in rows if row.get("audio")]
    samples = tuple(_sample(folder, where, row) for where, row in heard[:count])
    failed = sum("error" in row for _, row in rows)
    return Recordings(title, samples, len(heard), failed, len(rows) - len(heard) - failed)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


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
    if row.get("legal") is False:
        notes.append("The stream is not legal.")
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
