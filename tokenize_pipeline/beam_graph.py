"""The Beam graph: one element is one shard, so any runner may place and repeat them as it likes.

    shards of the plan → reshuffle → TokenizeShard → (names of finished shards)

Nothing travels through Beam but small descriptions; the shards go straight to the data set's folder,
which all workers must see. Importing this module imports apache_beam, which takes seconds.
"""

import argparse
import dataclasses
import difflib
import logging
import os
import shlex
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, fn_runner
from apache_beam.runners.runner import create_runner
from apache_beam.runners.worker import data_plane
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from soda_jax.errors import UserError
from tokenize_pipeline.local_workers import LOCAL_RUNNER, LocalWorkers
from tokenize_pipeline.options import Options
from tokenize_pipeline.plan import ShardPlan
from tokenize_pipeline.worker import Job, load_codec_once, tokenize_shard


class TokenizeShard(beam.DoFn):
    """Writes the shard that the element describes and yields its name."""

    def __init__(self, job: Job):
        """Args: job: what all shards have in common."""
        super().__init__()
        self._job = job

    def setup(self) -> None:
        """Loads the codec, once in each worker process."""
        if self._job.codec:
            load_codec_once(self._job.codec)

    def process(self, shard: ShardPlan) -> Iterator[str]:
        """Tokenises one shard; finished files appear atomically, so a repeat does no harm."""
        tokenize_shard(self._job, shard)
        yield shard.name


def check_options(runner: str, flags: Sequence[str]) -> None:
    """UserError for an unknown runner, or an option that neither `soda tokenize` nor Beam knows.

    Beam itself drops unknown options with a warning, so a typing error would change nothing and say so
    where nobody looks.
    """
    parser = _BeamArgumentParser(
        add_help=False, allow_abbrev=False, conflict_handler="resolve", exit_on_error=False
    )
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--runner={runner} is no runner of Beam: {error}") from None
    try:
        _, unknown = parser.parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise UserError(f"Beam option: {error}") from None
    if unknown:
        name = unknown[0].split("=")[0]
        ours = [f"--{field.name}" for field in dataclasses.fields(Options)]
        near = difflib.get_close_matches(name, [*ours, *parser._option_string_actions], 1)
        hint = f"; is {near[0]} meant?" if near else ""
        raise UserError(f"option {name} is known neither to soda tokenize nor to Beam{hint}")


def run_graph(
    job: Job,
    shards: Sequence[ShardPlan],
    runner: str,
    flags: Sequence[str],
    workers: LocalWorkers | None = None,
) -> None:
    """Runs the graph over `shards` to its end.

    Args:
      job: what all shards have in common.
      shards: what is still to be done.
      runner: name of a Beam runner; "DirectRunner" is the library's in-process one, which
        `--direct_running_mode=multi_processing --direct_num_workers=N` spreads over N processes.
      flags: further options for Beam, as on a command line.
      workers: the processes that these options ask for; None for none.

    Raises:
      UserError: if one of `workers` has crashed.
    """
    options = PipelineOptions([*flags, f"--runner={runner}"])
    chosen = _local_runner(options, workers) if runner == LOCAL_RUNNER else runner

    def run() -> None:
        with beam.Pipeline(runner=chosen, options=options) as pipeline:
            _ = (
                pipeline
                | "Shards" >> beam.Create(list(shards), reshuffle=False)
                | "Spread" >> beam.Reshuffle()
                | "Tokenize" >> beam.ParDo(TokenizeShard(job))
            )

    if workers is None:
        run()
    else:
        workers.run(run)


def _local_runner(options: PipelineOptions, workers: LocalWorkers | None) -> FnApiRunner:
    """Beam's runner inside this process; its worker processes, if any, are ours."""
    if workers is None:
        return FnApiRunner()
    direct = options.view_as(DirectOptions)
    direct.direct_num_workers = direct.direct_num_workers or os.cpu_count() or 1
    # The mode would put Beam's own command in the place of ours, and its absence is warned of.
    direct.direct_running_mode = "in_memory"
    logging.getLogger(fn_runner.__name__).setLevel(logging.ERROR)
    # Its one error is a lost connection: who has lost a worker says so.
    logging.getLogger(data_plane.__name__).setLevel(logging.CRITICAL)
    return FnApiRunner(SubprocessSDKEnvironment.from_command_string(shlex.join(workers.command)))
