"""Bad inputs: why one is left out, and the rows of `quarantine.jsonl`."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

# The reasons of `soda_jax.codecs.audio.AudioError`, and our own.
REASONS = {
    "missing": "there is no such sound file",
    "undecodable": "the file is no sound that libsndfile reads",
    "truncated": "the file ends before the length in its header or before the end time",
    "empty": "no bytes or no samples",
    "not_finite": "samples are NaN or infinite",
    "wrong_scale": "a sample is more than 16 times full scale",
    "silent": "no sample is above −80 dB of full scale",
    "channels_cancel": "the mean of the channels is more than 40 dB below the loudest one",
    "end_before_start": "end is not after start, or start is negative",
    "too_long": "longer than --max_audio_seconds",
    "outside_data_root": "the path leads out of --data_root",
    "empty_text": "the transcript is empty or white space",
    "invalid_utf8": "the text is not valid UTF-8",
    "nul": "the row contains a NUL byte",
    "not_in_tokenizer": "the tokenizer cannot write the text",
    "malformed_row": "the row of the manifest cannot be read, or a column is missing or wrong",
    "duplicate": "the row repeats an earlier one exactly; nothing is lost",
    "conflicting_duplicate": "an earlier row has the same id with other content, and that row is used",
}


class BadInputError(Exception):
    """Raised where an utterance turns out to be unusable; it is caught and quarantined."""

    def __init__(self, reason: str, message: str):
        """Args: reason: a key of `REASONS`. message: what is wrong, with the value, in one line."""
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class QuarantineRow:
    """One line of `quarantine.jsonl`.

    Attributes:
      document: document id; None where the row was too damaged to tell.
      utterance: number of the utterance in its document, from 0; None for a damaged row.
      file: the sound file as the corpus names it.
      where: the place in the input, such as `manifest.jsonl:17`.
      reason: a key of `REASONS`.
      message: what is wrong, in one line.
    """

    document: str | None
    utterance: int | None
    file: str | None
    where: str
    reason: str
    message: str

    def to_json(self) -> dict[str, object]:
        """The row as a JSON object."""
        return asdict(self)


def json_lines(rows: Iterable[QuarantineRow]) -> bytes:
    """The rows as JSONL in UTF-8; what UTF-8 cannot write (a lone surrogate) stands escaped."""
    lines = (json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
    return "".join(lines).encode("utf-8", "backslashreplace")


def read_rows(path: Path) -> list[QuarantineRow]:
    """The rows that `json_lines` wrote to a file."""
    return [QuarantineRow(**json.loads(line)) for line in path.read_bytes().splitlines()]


def count_by_reason(rows: Iterable[QuarantineRow]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first, ties by name."""
    counts = Counter(row.reason for row in rows)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def lost_count(counts: dict[str, int]) -> int:
    """How many inputs are lost, of counts by reason; an exact repeat is not."""
    return sum(count for reason, count in counts.items() if reason != "duplicate")
