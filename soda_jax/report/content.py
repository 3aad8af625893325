"""What a report is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A sound with a caption; f32 mono `[samples]`, in −1 … 1."""

    caption: str
    audio: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One thing the model did.

    Attributes:
      kind: what it did.
      title: a heading.
      sample_rate: of the clips, in Hz.
      clips: the sounds that went in and came out, in that order.
      prompt_text: the text that went in, if any.
      reference: the right transcript, if there is one.
      result: the text that came out: the model's transcript, or what a recogniser heard.
      note: a remark, such as that the length limit closed the utterance.
    """

    kind: Literal["speak", "transcribe", "continue"]
    title: str
    sample_rate: int
    clips: Sequence[Clip] = ()
    prompt_text: str = ""
    reference: str = ""
    result: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything that `write_report` shows; an empty part is left out.

    Attributes:
      title: heading of the page.
      intro: a paragraph of plain text below it.
      stages: (name, seconds) of what ran, in order.
      metrics: path of the run's `metrics.jsonl`.
      evaluation: what `soda_jax.evaluate.run.evaluate` returned.
      samples: what the model did.
      facts: what ran: name → value (parameters, hours of audio, …), shown as given.
      commands: (what it does, command line) to go on with.
      resumed_at: steps from which the run went on after a stop.
      peak: what the MFU is measured against, in words.
    """

    title: str
    intro: str = ""
    stages: Sequence[tuple[str, float]] = ()
    metrics: Path | None = None
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    samples: Sequence[Sample] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    commands: Sequence[tuple[str, str]] = ()
    resumed_at: Sequence[int] = ()
    peak: str = ""
