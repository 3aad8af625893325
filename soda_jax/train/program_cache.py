"""Shares the compiled training programs of runs in one process."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from soda_jax.schema import RunConfig, to_dict
from soda_jax.tokens import VocabularyLayout
from soda_jax.train.program import Program, Rates, make_program

# Sections of a config that the compiled functions do not depend on, except for `data.sequence_length`
# and `log.metrics`.
_NOT_IN_PROGRAM = ("data", "checkpoint", "evaluate", "export", "log")


class ProgramCache:
    """Makes the programs of several runs in one process; equal ones are compiled once.

    Runs share a program if they differ only in `Rates` and in settings that the program does not
    depend on, such as the data sets.
    """

    def __init__(self) -> None:
        """Starts with no program."""
        self._programs: dict[str, Program] = {}

    def key(self, config: RunConfig, layout: VocabularyLayout, *rest: Any) -> str:
        """Returns a string that is equal for runs that share a program."""
        settings = to_dict(config)
        for name in ("steps", "start_from", "start_from_step", *_NOT_IN_PROGRAM):
            del settings[name]
        # The fractions are in `Rates` too, but a registered optimizer may read them from its config.
        del settings["optimizer"]["peak_lr"]
        settings |= {"length": config.data.sequence_length, "metrics": config.log.metrics}
        return json.dumps([settings, layout.fingerprint, *rest], sort_keys=True, default=str)

    def __call__(
        self,
        config: RunConfig,
        layout: VocabularyLayout,
        sources: int,
        codebooks: Sequence[int] = (),
    ) -> Program:
        """Returns the program of a config, see `make_program`."""
        key = self.key(config, layout, sources, codebooks)
        program = self._programs.get(key)
        if program is None:
            program = make_program(config, layout, sources, codebooks=codebooks)
            self._programs[key] = program
        step = dataclasses.replace(program.step, rates=Rates.of(config))
        return dataclasses.replace(program, step=step)
