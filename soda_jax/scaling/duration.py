"""Hours and chips of planned runs, from the estimate of `soda plan` or from a given rate."""

import dataclasses
from typing import Any

from soda_jax.errors import UserError
from soda_jax.scaling.grid import PlannedRun


@dataclasses.dataclass(frozen=True)
class Duration:
    """How long a run takes.

    Attributes:
      hours: hours on `chips` chips; None if the run cannot be trained there.
      chips: number of chips.
      why: reason for `hours` = None, otherwise "".
    """

    hours: float | None
    chips: int
    why: str = ""


def at_rate(run: PlannedRun, rate: float, chips: int) -> Duration:
    """Returns the duration of a run at `rate` FLOP/s per chip, counted like the budget."""
    return Duration(run.flops / (rate * chips) / 3600, chips)


def on_topology(run: PlannedRun, topology: str, slices: int, compiled: bool = False) -> Duration:
    """Returns the duration of a run on a topology of `soda plan`, a lower bound.

    The step is estimated with the fewest micro-batches that fit into memory.

    Args:
      run: the run.
      topology: CHIP:SHAPE.
      slices: number of slices.
      compiled: whether to compile the step instead of estimating it.

    Raises:
      UserError: if the topology is unknown.
    """
    from soda_jax.plan.topologies import parse_topology, set_compiler_environment

    machine = parse_topology(topology, slices)
    if machine.is_tpu and compiled:
        set_compiler_environment()
    from soda_jax.plan.compiled import DoesNotFitError
    from soda_jax.plan.run import Planner
    from soda_jax.scaling.run_config import config_of
    from soda_jax.schema import run_config

    config: Any = config_of(run)
    layout, why = _layout(run.vocabulary), "it does not fit into memory"
    accumulation = 1
    while accumulation <= run.batch:
        config.gradient_accumulation = accumulation
        settings = run_config(config)
        try:
            outcome = Planner(settings, layout, machine, None, not compiled).make(settings)
        except DoesNotFitError as error:
            why = str(error)
        except UserError as error:
            why = str(error) if accumulation == 1 else why
            break
        else:
            if outcome.fits:
                return Duration(run.steps * outcome.seconds / 3600, machine.chips)
        accumulation *= 2
    return Duration(None, machine.chips, why)


def _layout(vocabulary: int) -> Any:
    """Returns SODA's layout for its number of ids, and one block of text for any other."""
    from soda_jax.tokens.vocabulary import VocabularyLayout

    soda = VocabularyLayout.soda()
    if vocabulary == soda.size:
        return soda
    return VocabularyLayout(vocabulary - 4, (0, 1), 0, 1, ())
