"""The result of a dry run, and its text for the user."""

import dataclasses
from collections.abc import Iterator

_TOLERANCE = 0.05  # relative error of expected lengths that is not reported
_UNITS = {"speech": "seconds of audio", "text": "bytes of text"}


@dataclasses.dataclass(frozen=True)
class TimedShard:
    """The shard that a dry run tokenized and timed.

    Attributes:
      expected: its expected seconds of audio, or bytes of text.
      found: its seconds of audio; 0 for text.
      elapsed: seconds that it took.
      tried: number of utterances tried, in this and smaller shards.
      bad: number of unusable ones among them, by reason.
      message: message of the first unusable one.
    """

    expected: float = 0.0
    found: float = 0.0
    elapsed: float = 0.0
    tried: int = 0
    bad: dict[str, int] = dataclasses.field(default_factory=dict)
    message: str = ""

    @property
    def rate(self) -> float:
        """Expected seconds of audio (or bytes of text) per second; 0 if nothing was usable."""
        return self.expected / self.elapsed if self.elapsed else 0.0


@dataclasses.dataclass(frozen=True)
class SplitEstimate:
    """The estimate of one split.

    Attributes:
      shards: number of shards.
      work: seconds of audio, or bytes of text.
      totals: number of documents, utterances, text_tokens and frames.
      tokens: number of tokens by view.
      stored: bytes of shards and indexes.
    """

    shards: int
    work: float
    totals: dict[str, int]
    tokens: dict[str, int]
    stored: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The result of a dry run.

    Attributes:
      kind: "speech" or "text".
      splits: estimates by name of the split.
      counts: counts of the plan, see `Summary.counts`.
      rejected: input rows that describe no utterance, by reason.
      texts: number of texts.
      sampled: number of texts that were tokenized.
      rate: expected seconds of audio (or bytes of text) per second; 0 if unknown.
      timed: the timed shard; None if the rate was given.
    """

    kind: str
    splits: dict[str, SplitEstimate]
    counts: dict[str, int]
    rejected: dict[str, int]
    texts: int
    sampled: int
    rate: float
    timed: TimedShard | None

    @property
    def seconds(self) -> float | None:
        """Seconds that the shards take in one process; None if the rate is unknown."""
        return sum(split.work for split in self.splits.values()) / self.rate if self.rate else None

    def describe(self, name: str) -> str:
        """Returns the estimate as lines of text, in which the data set is called `name`."""
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
        unit, timed = _UNITS[self.kind], self.timed
        if not any(split.shards for split in self.splits.values()):
            yield "time: none, there is nothing to tokenize"
            return
        if timed is None:
            yield f"rate: {self.rate:,.0f} {unit} per second, as given"
        elif not self.rate:
            cause = f": {timed.message}" if timed.message else ""
            item = "sound" if self.kind == "speech" else "text"
            yield (
                f"time: unknown, none of the first {timed.tried:,} utterances has a usable "
                f"{item}{cause}; give --rate, {unit} per second"
            )
            return
        else:
            yield (
                f"rate: {self.rate:,.0f} {unit} per second in this process, measured on the first "
                f"utterances ({timed.expected:,.0f} {unit} in {timed.elapsed:.1f} s)"
            )
            ratio = timed.found / max(timed.expected, 1e-9)
            if timed.found and abs(ratio - 1) > _TOLERANCE:
                yield (
                    f"  their sound is {ratio:.2f} times as long as expected: hours, tokens and bytes "
                    "differ by this factor if the others are similar"
                )
            if timed.bad:
                yield f"  unusable, of {timed.tried:,} tried: {_reasons(timed.bad)}"
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
    yield f"  about {estimate.stored:,} bytes on disk with the index, {each:.3f} per token"


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "0"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"about {seconds:.0f} s"
    minutes = seconds / 60
    return f"about {minutes:.0f} min" if minutes < 120 else f"about {minutes / 60:,.1f} h"
