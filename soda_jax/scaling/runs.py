"""The finished runs of a study as arrays."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

DETAILS = ("width", "lr", "started", "ended")  # columns that a report shows
PARAMETER_COUNTS = ("params_total", "params_one_head", "params_non_embedding")


@dataclasses.dataclass(frozen=True)
class Runs:
    """Finished runs, one entry per run in each array.

    Attributes:
      budget: training FLOPs of the curve that the run belongs to.
      params: number of parameters.
      tokens: number of training tokens.
      loss: loss in nats.
      counts: further parameter counts by name, `[runs]` each.
      classes: loss by token class, `[runs]` each; NaN where it was not measured.
      set_aside: a line for each row that is not used, with the reason; the first row is 1.
      notes: how missing columns were filled in, and cells that are not used.
      source: file, digest and columns, for the output.
      details: cells of the columns `DETAILS` that the table has, as text, `[runs]` each.
    """

    budget: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    counts: Mapping[str, np.ndarray]
    classes: Mapping[str, np.ndarray]
    set_aside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    details: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, chosen: np.ndarray) -> "Runs":
        """Returns the runs for which `chosen`, bool `[runs]`, is true."""
        return dataclasses.replace(
            self,
            budget=self.budget[chosen],
            params=self.params[chosen],
            tokens=self.tokens[chosen],
            loss=self.loss[chosen],
            counts={name: value[chosen] for name, value in self.counts.items()},
            classes={name: value[chosen] for name, value in self.classes.items()},
            details={name: value[chosen] for name, value in self.details.items()},
        )
