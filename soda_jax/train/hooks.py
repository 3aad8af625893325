"""What may be plugged into a run: evaluators, exporters, further loggers."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from soda_jax.model import ModelFunctions


@dataclasses.dataclass(frozen=True)
class RunView:
    """What a hook sees of a run; it must not change any of it.

    Attributes:
      step: optimizer steps done.
      config: the run's ConfigDict.
      workdir: the run's folder.
      mesh: the devices.
      model: the decoder as functions.
      params: its parameters on the devices; donated to the next step, so not to be kept.
      dataset: the training mixture.
      metrics: the metrics of this step as plain floats.
      metadata: makes what a checkpoint of this step would hold beside its arrays.
    """

    step: int
    config: Any
    workdir: Path
    mesh: jax.sharding.Mesh
    model: ModelFunctions
    params: Any
    dataset: Any
    metrics: Mapping[str, float]
    metadata: Callable[[], dict[str, Any]]


class Hook(Protocol):
    """Called after every `every` steps and after the last one; every host calls it at the same step."""

    every: int

    def __call__(self, run: RunView) -> Mapping[str, float]:
        """Returns metrics, which are logged beside the run's own."""
        ...
