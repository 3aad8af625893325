"""Reads the gold files of ZeroSpeech 2021 (https://zerospeech.com/tasks/task_4/benchmarks_datasets).

    DIR/lexical/dev/gold.csv          columns filename, id, voice, word, correct and others
    DIR/lexical/dev/FILENAME.wav
    DIR/syntactic/dev/gold.csv        columns filename, id, voice, type, subtype, transcription, correct

A pair consists of the rows with the same id and voice (in the syntactic part, also type and subtype), of
which one has `correct` 1 and the other 0. The official score (package zerospeech2021) is the mean over
pairs of the mean over voices; ties count one half.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from soda_jax.errors import UserError
from soda_jax.evaluate.benchmarks._pairs import file_in
from soda_jax.evaluate.choices import Entry


def gold_rows(folder: Path, part: str, columns: Sequence[str]) -> tuple[Path, list[dict[str, str]]]:
    """Returns the gold file of a part ("lexical", "syntactic") and its rows.

    Raises:
      UserError: if the file is missing, or lacks one of `columns`.
    """
    path = file_in(folder, f"{part}/dev/gold.csv", "dev/gold.csv", "gold.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]!r}; its columns are "
                f"{', '.join(reader.fieldnames or ())}"
            )
        rows = list(reader)
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

    Raises:
      UserError: if the gold file cannot be used, or a pair does not consist of two rows.
    """
    columns = ["filename", *key, "voice", "correct", text, *([by] if by else [])]
    path, rows = gold_rows(folder, part, columns)
    found: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        name = tuple(row[column] for column in key) + ((row["voice"],) if spoken else ())
        pair = found.setdefault(name, {})
        if spoken and row["correct"] in pair:
            raise UserError(f"{path}: pair {'/'.join(name)} has two rows with the same `correct`")
        pair.setdefault(row["correct"], row)
    entries = []
    for name, pair in found.items():
        if set(pair) != {"0", "1"}:
            raise UserError(f"{path}: pair {'/'.join(name)} has only one row")
        both = (pair["1"], pair["0"])
        content = [_sound(path, row) if spoken else row[text] for row in both]
        group = "/".join(name[: len(key)])
        entries.append(Entry("/".join(name), group, pair["1"][by] if by else "", content))
    return entries


def _sound(gold: Path, row: dict[str, str]) -> str:
    return str(gold.parent / f"{row['filename'].removesuffix('.wav')}.wav")
