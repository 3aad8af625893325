"""Rows of the tables of a report, as read from the JSON of `soda evaluate`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from soda_jax.evaluate.tables import ClassRow


@dataclasses.dataclass(frozen=True)
class Score:
    """One headline number of an evaluation.

    Attributes:
      name: what is measured; a name of `COLUMNS`, or a score on held-out data.
      task: the task of `soda evaluate`.
      value: in the unit of the paper's column: percent, or a cosine; None if it could not be computed.
      low, high: 95% interval, in the same unit; None if there is none.
      items: number of scored items.
      normalizer: "full ids" or "legal ids" of log-probabilities, or how the texts of a WER are normalized.
      tokens: tokens whose log-probability counts, "all" or "semantic"; "" for speech.
      scorer: name of what computed the score.
      differences: see `comparable.differences`; empty if the score may be in the paper's column.
    """

    name: str
    task: str
    value: float | None
    low: float | None
    high: float | None
    items: int
    normalizer: str
    tokens: str
    scorer: str
    differences: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PartRow:
    """Accuracy in percent of a part of a benchmark, with its 95% interval."""

    task: str
    normalizer: str
    tokens: str
    part: str
    accuracy: float
    low: float
    high: float
    items: int


@dataclasses.dataclass(frozen=True)
class SpeechRow:
    """Word error rates of a task, as fractions, and how they were measured.

    Attributes:
      task: the task of `soda evaluate`.
      items: number of scored items.
      corpus, mean: word error rate of all words, and mean over utterances.
      finished: share of outputs that the model ended; None if it is not known.
      scorer: the recognizer; "" if the model itself transcribes.
      settings: decoding or sampling.
      text: how texts are normalized.
      remarks: further scores, as text.
    """

    task: str
    items: int
    corpus: float
    mean: float
    finished: float | None
    scorer: str
    settings: str
    text: str
    remarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class FailedItems:
    """Items of a task that failed: their number, and (name, reason) of each."""

    task: str
    items: int
    failed: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Results:
    """One evaluation: its settings, and the rows of the tables.

    Attributes:
      settings: the entries of the JSON that are not scores.
      scores, parts, speech, failed: see the classes of their rows.
      losses: held-out losses by class of token; empty without the task `loss`.
      loss_settings: what the losses depend on, as text.
      numbers: (name, value) of the numbers and short texts of all other tasks.
      stopped: (task, reason) of tasks that failed during training.
    """

    settings: Mapping[str, Any]
    scores: tuple[Score, ...]
    parts: tuple[PartRow, ...]
    speech: tuple[SpeechRow, ...]
    failed: tuple[FailedItems, ...]
    losses: tuple[ClassRow, ...]
    loss_settings: str
    numbers: tuple[tuple[str, float | str], ...]
    stopped: tuple[tuple[str, str], ...] = ()

    @property
    def step(self) -> int:
        """Number of optimizer steps of the checkpoint."""
        return self.settings["step"]
