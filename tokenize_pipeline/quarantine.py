"""Defines the reasons for bad inputs, and reads and writes rows of `quarantine.jsonl`."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

# Includes all reasons of `soda_jax.codecs.audio.AudioError`.
REASONS = {
    "missing": "no such sound file or archive member",
    "undecodable": "libsndfile cannot read the file",
    "truncated": "the file ends before the length in its header or before the end time",
    "empty": "no bytes or no samples",
    "not_finite": "samples are NaN or infinite",
    "wrong_scale": "a sample is more than 16 times full scale",
    "silent": "no sample is above −80 dB of full scale",
    "channels_cancel": "the mean of the channels is more than 40 dB below the loudest one",
    "end_before_start": "end is not after start, or start is negative",
    "too_long": "longer than --max_audio_seconds",
    "outside_data_root": "the path is outside --data_root",
    "empty_text": "the transcript is empty or white space",
    "invalid_utf8": "the text is not valid UTF-8",
    "nul": "the row contains a NUL byte",
    "not_in_tokenizer": "the tokenizer cannot represent the text",
    "malformed_row": "the row cannot be parsed, or a field is missing or wrong",
    "duplicate": "the row repeats an earlier one exactly; nothing is lost",
    "conflicting_duplicate": "an earlier row has the same id with other content, and that row is used",
}


class BadInputError(Exception):
    """Raised for an unusable utterance, which is then quarantined."""

    def __init__(self, reason: str, message: str):
        """Creates the error.

        Args:
          reason: a key of `REASONS`.
          message: one line, which contains the bad value.
        """
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class QuarantineRow:
    """One line of `quarantine.jsonl`.

    Attributes:
      document: document id; None if it could not be read.
      utterance: index of the utterance in its document; None for a rejected row.
      file: path of the sound file or archive in the corpus; None for text and rejected rows.
      where: position in the input, such as `manifest.jsonl:17`.
      reason: a key of `REASONS`.
      message: one line that describes the error.
    """

    document: str | None
    utterance: int | None
    file: str | None
    where: str
    reason: str
    message: str


def json_lines(rows: Iterable[QuarantineRow]) -> bytes:
    """Returns the rows as JSONL in UTF-8; lone surrogates are escaped."""
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    return "".join(lines).encode("utf-8", "backslashreplace")


def read_rows(path: Path) -> list[QuarantineRow]:
    """Reads the rows that `json_lines` wrote to a file."""
    return [QuarantineRow(**json.loads(line)) for line in path.read_bytes().splitlines()]


def count_by_reason(rows: Iterable[QuarantineRow]) -> dict[str, int]:
    """Returns the count of each reason, sorted by decreasing count, then by name."""
    counts = Counter(row.reason for row in rows)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def lost_count(counts: dict[str, int]) -> int:
    """Returns the number of lost inputs, from counts by reason; exact repeats are not counted."""
    return sum(count for reason, count in counts.items() if reason != "duplicate")


def list_reasons(counts: dict[str, int]) -> str:
    """Returns counts by reason as text, such as `2 missing, 1 silent`; "0" if there are none."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "0"
