"""Splits long texts into pieces of whole sentences, and long recordings at their pauses."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The white space after a sentence; full-width punctuation needs none.
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*(?:\s+|$)|(?<=[。！？])[”’」』）]*\s*")
# Abbreviations after which a sentence rarely ends, and initials such as "J.".
_ABBREVIATION = re.compile(
    r"(?:^|\s|\()(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|cf|approx|No|Fig|e\.g|i\.e|[A-Z])\.$"
)
# The ends of clauses and of words; "10:30" and "1,000" have none.
_CLAUSE = re.compile(r"(?<=[,;:])\s+|(?<=[、，；：])\s*")
_WORD = re.compile(r"\s+")
_PAUSE = 0.3  # seconds over which the level of a pause is averaged
_STEP = 0.01  # seconds between the levels that are compared
# A silent segment is 60 dB below the peak of its recording.
_SILENCE = 1e-3

Span = tuple[int, int]


class Segment(NamedTuple):
    """A part of a recording, in samples; `silent` if its peak is 60 dB below that of the recording."""

    start: int
    end: int
    silent: bool


def sentences(text: str) -> list[str]:
    """Returns the sentences of a text, without the white space between them."""
    return [text[start:end] for start, end in _sentences(text)]


def split_text(text: str, longest: int) -> list[str]:
    """Splits a text into pieces of at most `longest` characters, of whole sentences where possible.

    A sentence that is too long is split at clauses, then at white space, then anywhere. Every piece is a
    substring of the text with single spaces.

    Args:
      text: the text.
      longest: at least 1; 0 for one piece.
    """
    text = " ".join(text.split())
    if not text:
        return []
    if not longest or len(text) <= longest:
        return [text]
    spans: list[Span] = []
    for sentence in _sentences(text):
        spans += _joined(_cut(text, sentence, longest), longest)
    return [text[start:end] for start, end in _joined(spans, longest)]


def _sentences(text: str) -> list[Span]:
    found, start = [], 0
    for match in _SENTENCE.finditer(text):
        span = _stripped(text, (start, match.end()))
        if span[0] < span[1] and not _ABBREVIATION.search(text[slice(*span)]):
            found.append(span)
            start = match.end()
    rest = _stripped(text, (start, len(text)))
    return [*found, rest] if rest[0] < rest[1] else found


def _cut(text: str, sentence: Span, longest: int) -> list[Span]:
    """Returns the parts of a sentence, each at most `longest` characters, as long as possible."""
    if sentence[1] - sentence[0] <= longest:
        return [sentence]
    parts = []
    for clause in _between(text, sentence, _CLAUSE):
        words = [clause]
        if clause[1] - clause[0] > longest:
            words = _between(text, clause, _WORD)
        for start, end in words:
            parts += [(at, min(end, at + longest)) for at in range(start, end, longest)]
    return parts


def _between(text: str, span: Span, separator: re.Pattern[str]) -> list[Span]:
    """Returns the parts of a span between the matches of a separator."""
    found, start = [], span[0]
    for match in separator.finditer(text, *span):
        found.append((start, match.start()))
        start = match.end()
    return [part for part in (*found, (start, span[1])) if part[0] < part[1]]


def _joined(spans: Sequence[Span], longest: int) -> list[Span]:
    """Joins neighbors, with what is between them, while they fit into `longest` characters."""
    found: list[Span] = []
    for start, end in spans:
        if found and end - found[-1][0] <= longest:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _stripped(text: str, span: Span) -> Span:
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def split_recording(audio: np.ndarray, sample_rate: int, longest: int) -> list[Segment]:
    """Splits a recording into segments of at most `longest` samples, cut at its pauses.

    A cut is in the middle of the quietest 0.3 s between one half of `longest` and `longest` after the last
    cut. The segments are consecutive and cover the recording.

    Args:
      audio: f32 mono `[samples]`, not empty.
      sample_rate: in Hz.
      longest: at least 1.
    """
    if len(audio) <= longest:
        return [Segment(0, len(audio), False)]
    # Cuts are at multiples of a step, so only the energies of whole steps are in memory.
    step = max(1, min(round(_STEP * sample_rate), longest // 4))
    starts = np.arange(0, len(audio), step)
    energy = np.concatenate(
        [[0.0], np.cumsum(np.add.reduceat(audio * audio, starts, dtype=np.float64))]
    )
    half = max(1, round(_PAUSE * sample_rate / step / 2))
    cuts = [0]
    while len(audio) - cuts[-1] > longest:
        last = (cuts[-1] + longest) // step
        first = min(last, max(cuts[-1] // step + 1, -(-(cuts[-1] + longest // 2) // step)))
        middles = np.arange(first, last + 1)
        lower = np.maximum(middles - half, 0)
        upper = np.minimum(middles + half, len(energy) - 1)
        level = (energy[upper] - energy[lower]) / (upper - lower)
        cuts.append(int(middles[level.argmin()]) * step)
    ends = [*cuts[1:], len(audio)]
    peaks = [float(np.abs(audio[start:end]).max()) for start, end in zip(cuts, ends, strict=True)]
    return [
        Segment(start, end, peak < _SILENCE * max(peaks))
        for start, end, peak in zip(cuts, ends, peaks, strict=True)
    ]
