"""The protocol for hooks that run between steps: evaluators, exporters, further loggers."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from soda_jax.model import ModelFunctions
from soda_jax.schema import RunConfig


@dataclasses.dataclass(frozen=True)
class RunView:
    """The state of a run after a step; a hook must not change it.

    Attributes:
      step: optimizer steps done.
      config: settings of the run.
      workdir: the run's folder.
      mesh: device mesh of the run.
      model: the decoder, see `ModelFunctions`.
      params: the parameters, on the devices; they are donated to the next step, so do not keep
        them.
      dataset: the training mixture.
      metrics: metrics of this step as Python floats.
      metadata: function that returns the metadata of a checkpoint at this step.
    """

    step: int
    config: RunConfig
    workdir: Path
    mesh: jax.sharding.Mesh
    model: ModelFunctions
    params: Any
    dataset: Any
    metrics: Mapping[str, float]
    metadata: Callable[[], dict[str, Any]]


class Hook(Protocol):
    """A function that all processes call every `every` steps and after the last step."""

    every: int

    def __call__(self, run: RunView) -> Mapping[str, float]:
        """Returns metrics, which are logged with the metrics of the step."""
        ...
