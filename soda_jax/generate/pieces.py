"""Splits long texts into pieces of whole sentences, and long recordings at their pauses."""

import re
from typing import NamedTuple

import numpy as np

# The end of a sentence: its punctuation with closing quotes or brackets, then white space. Full-width
# punctuation needs no white space.
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])[”’」』）]*\s*")
# Abbreviations after which a sentence rarely ends, and initials such as "J.".
_ABBREVIATION = re.compile(
    r"(?:^|\s|\()(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|cf|approx|No|Fig|e\.g|i\.e|[A-Z])\.$"
)
_CLAUSE = re.compile(r"(?<=[,;:、，；：])\s*")
_PAUSE = 0.3  # seconds over which the level of a pause is averaged
_STEP = 0.01  # seconds between the levels that are compared
_SILENCE = 1e-3  # peak amplitude, −60 dB of full scale


class Segment(NamedTuple):
    """A part of a recording, in samples; `silent` if its peak is below −60 dB of full scale."""

    start: int
    end: int
    silent: bool


def sentences(text: str) -> list[str]:
    """Returns the sentences of a text, without the white space between them."""
    found, start = [], 0
    for match in _SENTENCE.finditer(text):
        sentence = text[start : match.end()].strip()
        if sentence and not _ABBREVIATION.search(sentence):
            found.append(sentence)
            start = match.end()
    return [*found, rest] if (rest := text[start:].strip()) else found


def split_text(text: str, longest: int) -> list[str]:
    """Splits a text into pieces of at most `longest` characters, of whole sentences where possible.

    A sentence that is too long is split at clauses, then at spaces, then anywhere. With `longest` 0, or for a
    text that is short enough, there is one piece; an empty text has none.
    """
    text = " ".join(text.split())
    if not text:
        return []
    if not longest or len(text) <= longest:
        return [text]
    return _joined([piece for s in sentences(text) for piece in _cut(s, longest)], longest)


def _cut(sentence: str, longest: int) -> list[str]:
    """Splits one sentence into pieces of at most `longest` characters."""
    if len(sentence) <= longest:
        return [sentence]
    words = []
    for clause in filter(None, map(str.strip, _CLAUSE.split(sentence))):
        parts = [clause] if len(clause) <= longest else clause.split()
        for part in parts:
            words += [part[at : at + longest] for at in range(0, len(part), longest)]
    return _joined(words, longest)


def _joined(pieces: list[str], longest: int) -> list[str]:
    """Joins neighbors with a space while they fit into `longest` characters."""
    found: list[str] = []
    for piece in pieces:
        if found and len(found[-1]) + 1 + len(piece) <= longest:
            found[-1] += " " + piece
        else:
            found.append(piece)
    return found


def split_recording(audio: np.ndarray, sample_rate: int, longest: int) -> list[Segment]:
    """Splits a recording into segments of at most `longest` samples, cut at its pauses.

    A cut is in the middle of the quietest 0.3 s between one half of `longest` and `longest` after the last cut.
    The segments are consecutive and cover the recording.

    Args:
      audio: f32 mono `[samples]`, not empty.
      sample_rate: in Hz.
      longest: at least 1.
    """
    cuts = [0]
    step = max(1, round(_STEP * sample_rate))
    energy = np.concatenate([[0.0], np.cumsum(np.square(audio, dtype=np.float64))])
    while len(audio) - cuts[-1] > longest:
        start, end = cuts[-1] + max(1, longest // 2), cuts[-1] + longest
        half = max(1, min(round(_PAUSE * sample_rate), end - start) // 2)
        middles = np.arange(start, end + 1, step)
        lower, upper = np.maximum(middles - half, 0), np.minimum(middles + half, len(audio))
        level = (energy[upper] - energy[lower]) / (upper - lower)
        cuts.append(int(middles[level.argmin()]))
    ends = [*cuts[1:], len(audio)]
    return [
        Segment(start, end, bool(np.abs(audio[start:end]).max(initial=0) < _SILENCE))
        for start, end in zip(cuts, ends, strict=True)
    ]
