"""Dataclasses for the content of a report."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Audio, f32 mono `[samples]` in −1 … 1, with a caption."""

    caption: str
    audio: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One output of the model, with its input.

    Attributes:
      kind: the task.
      title: heading of the sample.
      sample_rate: sample rate of the clips in Hz.
      clips: input and output audio, in this order.
      prompt_text: input text, if any.
      reference: correct transcript, if there is one.
      result: output text, which is a transcript by the model or by a recognizer.
      note: a remark, for example that the utterance reached the length limit.
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
    """The content of a report; empty parts are omitted.

    Attributes:
      title: heading of the page.
      intro: a paragraph of plain text after the heading.
      stages: (name, seconds) of each stage, in order.
      metrics: path of the run's `metrics.jsonl`.
      evaluation: result of `soda_jax.evaluate.evaluators.evaluate`.
      samples: outputs of the model.
      facts: properties of the run by name, such as the number of parameters; integers are
        shown with thousands separators.
      commands: (description, command line) of next steps.
      resumed_at: steps from which the run was resumed.
      peak: the peak FLOP/s that the MFU is relative to, as text.
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
