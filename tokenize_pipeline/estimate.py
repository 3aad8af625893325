"""What a dry run expects of a job, and how it is told."""

import dataclasses
from collections.abc import Iterator

from tokenize_pipeline.rate import MeasuredRate

_TOLERANCE = 0.05  # of the length of sounds, above which it is told
_UNITS = {"speech": "seconds of audio", "text": "bytes of text"}


@dataclasses.dataclass(frozen=True)
class SplitEstimate:
    """What is expected of one split.

    Attributes:
      shards: how many.
      work: seconds of audio, or bytes of text.
      totals: documents, utterances, text_tokens and frames.
      tokens: by view.
      stored: bytes of shards and indexes.
    """

    shards: int
    work: float
    totals: dict[str, int]
    tokens: dict[str, int]
    stored: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a dry run found.

    Attributes:
      kind: "speech" or "text".
      splits: by name.
      counts: of the plan, see `Summary.counts`.
      rejected: rows that describe no utterance, by reason.
      texts: how many texts there are.
      sampled: how many of them were tokenized.
      rate: expected seconds of audio (or bytes of text) done in a second; 0 if it is not known.
      measured: how the rate was found; None if it was given.
    """

    kind: str
    splits: dict[str, SplitEstimate]
    counts: dict[str, int]
    rejected: dict[str, int]
    texts: int
    sampled: int
    rate: float
    measured: MeasuredRate | None

    @property
    def seconds(self) -> float | None:
        """How long the shards take in one process, in seconds; None if the rate is not known."""
        return sum(split.work for split in self.splits.values()) / self.rate if self.rate else None

    def describe(self, name: str) -> str:
        """The estimate in some lines; `name` is what to call the data set."""
        lines = [f"dry run: nothing is written to {name}"]
        for split, estimate in self.splits.items():
            lines += _describe_split(split, estimate, self.kind)
        if self.sampled < self.texts:
            basis = f"estimated from {self.sampled:,} of {self.texts:,} texts"
        else:
            basis = f"counted in all {self.texts:,} texts"
        lines.append(f"text tokens: {basis}")
        for key in ("already_in_dataset", "repeated_in_input"):
            if self.counts[key]:
                lines.append(f"skipped, {key.replace('_', ' ')}: {self.counts[key]:,} documents")
        lines.append(f"rejected rows: {_reasons(self.rejected)}")
        return "\n".join([*lines, *self._describe_time()])

    def _describe_time(self) -> Iterator[str]:
        unit, measured = _UNITS[self.kind], self.measured
        if not any(split.shards for split in self.splits.values()):
            yield "time: none, there is nothing to tokenize"
            return
        if measured is None:
            yield f"rate: {self.rate:,.0f} {unit} a second, as given"
        elif not self.rate:
            cause = f": {measured.message}" if measured.message else ""
            sounds = "sound" if self.kind == "speech" else "text"
            yield (
                f"time: not known, for none of the first {measured.tried:,} utterances has a usable "
                f"{sounds}{cause}; give --rate, {unit} a second"
            )
            return
        else:
            yield (
                f"rate: {self.rate:,.0f} {unit} a second in this process, measured on the first "
                f"utterances ({measured.expected:,.0f} {unit} in {measured.elapsed:.1f} s)"
            )
            times = measured.found / max(measured.expected, 1e-9)
            if measured.found and abs(times - 1) > _TOLERANCE:
                yield (
                    f"  their sound lasted {times:.2f} times as long as expected: hours, tokens and "
                    "bytes are off as much if the others are like them"
                )
            if measured.bad:
                yield f"  unusable, of {measured.tried:,} tried: {_reasons(measured.bad)}"
        yield f"time: {_duration(self.seconds or 0.0)} in one process, after planning"


def _describe_split(split: str, estimate: SplitEstimate, kind: str) -> Iterator[str]:
    totals = estimate.totals
    if not totals["documents"]:
        yield f"{split}: empty"
        return
    counts = f"{totals['documents']:,} documents, {totals['utterances']:,} utterances"
    yield f"{split}: {counts}, {estimate.shards:,} shards"
    if kind == "speech":
        yield f"  {estimate.work / 3600:,.2f} hours of audio expected"
    for view, tokens in estimate.tokens.items():
        both = f" in each order, {2 * tokens:,} in both" if view == "S+A+T" else ""
        yield f"  {view:<6} {tokens:,} tokens{both}"
    each = estimate.stored / max(estimate.tokens.values())
    yield f"  about {estimate.stored:,} bytes on disk with the index, {each:.3f} a token"


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "0"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"about {seconds:.0f} s"
    minutes = seconds / 60
    return f"about {minutes:.0f} min" if minutes < 120 else f"about {minutes / 60:,.1f} h"
