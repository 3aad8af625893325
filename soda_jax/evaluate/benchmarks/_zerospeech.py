"""Reads the gold files of ZeroSpeech 2021 (https://zerospeech.com/tasks/task_4/benchmarks_datasets).

    DIR/lexical/dev/gold.csv          columns filename, id, voice, frequency, word, correct and others
    DIR/lexical/dev/FILENAME.wav
    DIR/syntactic/dev/gold.csv        columns filename, id, voice, type, subtype, transcription, correct

A pair consists of the rows with the same id and voice (in the syntactic part, also type and subtype), of
which one has `correct` 1 and the other 0. The official score (package zerospeech2021) is the mean over
pairs of the mean over voices; ties count one half.
"""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from soda_jax.errors import UserError
from soda_jax.evaluate.benchmarks._pairs import file_in, read_lines
from soda_jax.evaluate.choices import Entry


def gold_rows(folder: Path, part: str, columns: Sequence[str]) -> tuple[Path, list[dict[str, str]]]:
    """Returns the gold file of a part ("lexical", "syntactic") and its rows.

    Raises:
      UserError: if the file is missing, or lacks one of `columns`.
    """
    path = file_in(folder, f"{part}/dev/gold.csv", "dev/gold.csv", "gold.csv")
    reader = csv.DictReader(read_lines(path), restval="")
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r}; its columns are "
            f"{', '.join(reader.fieldnames or ())}"
        )
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}") from None
    for number, row in enumerate(rows, 2):
        if row["correct"] not in ("0", "1"):
            raise UserError(f"{path}:{number}: correct is {row['correct']!r}, not 0 or 1")
    return path, rows


def pairs(
    folder: Path, part: str, key: Sequence[str], text: str, by: str = "", spoken: bool = True
) -> list[Entry]:
    """Returns the pairs of a part.

    Args:
      folder: folder of the data set.
      part: "lexical" or "syntactic".
      key: the columns that identify a pair.
      text: the column with the text.
      by: the column that names the part of the benchmark; "" for none.
      spoken: True for recordings, one pair for each voice; False for texts, one pair for all voices.

    Returns:
      one entry per pair; the content is the recordings or texts, the right one first, or a string, the reason
      why the pair cannot be scored.

    Raises:
      UserError: if the gold file cannot be used.
    """
    columns = ["filename", *key, "voice", "correct", text, *([by] if by else [])]
    path, rows = gold_rows(folder, part, columns)
    found: dict[tuple[str, ...], dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        name = tuple(row[column] for column in key) + ((row["voice"],) if spoken else ())
        found.setdefault(name, {"1": [], "0": []})[row["correct"]].append(row)
    entries = []
    for name, pair in found.items():
        content: list[str] | str
        right, wrong = pair["1"], pair["0"]
        if not right or not wrong or (spoken and len(right) + len(wrong) > 2):
            content = (
                f"{path} has {len(right)} right and {len(wrong)} wrong rows for it, not one each"
            )
        elif spoken:
            content = [_sound(path, row[0]) for row in (right, wrong)]
        else:
            content = [row[0][text] for row in (right, wrong)]
        group, first = "/".join(name[: len(key)]), (right or wrong)[0]
        entries.append(Entry("/".join(name), group, first[by] if by else "", content))
    return entries


def by_frequency(entries: Sequence[Entry]) -> list[Entry]:
    """Returns entries whose part is a frequency with the part "oov" (not in LibriSpeech) or "in_vocabulary"."""
    return [
        dataclasses.replace(
            entry, part="oov" if entry.part in ("", "0", "0.0") else "in_vocabulary"
        )
        for entry in entries
    ]


def _sound(gold: Path, row: dict[str, str]) -> str:
    return str(gold.parent / f"{row['filename'].removesuffix('.wav')}.wav")
