"""The Beam graph for clusters. One element is one shard, so any runner may distribute and repeat elements.

    shards of the plan → reshuffle → TokenizeShard → (names of finished shards)

The elements are small descriptions. Workers write the shards directly to the folder of the data set,
which all workers must see. Importing this module imports apache_beam, which takes seconds; local jobs
do not import it.
"""

import argparse
import dataclasses
import difflib
import logging
import warnings
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser
from apache_beam.runners.runner import create_runner

from soda_jax.errors import UserError
from tokenize_pipeline.options import TokenizeOptions
from tokenize_pipeline.plan import ShardPlan
from tokenize_pipeline.worker import Job, load_codec_once, tokenize_shard

_RUNNERS = {"dask": "apache_beam.runners.dask.dask_runner.DaskRunner"}


class TokenizeShard(beam.DoFn):
    """Writes the shard that the element describes and yields its name."""

    def __init__(self, job: Job):
        """Creates the function for the shards of `job`."""
        super().__init__()
        self._job = job

    def setup(self) -> None:
        """Loads the codec once in each worker process."""
        if self._job.codec:
            load_codec_once(self._job.codec)

    def process(self, shard: ShardPlan) -> Iterator[str]:
        """Tokenizes one shard. Its files are renamed into place, so it may be repeated."""
        tokenize_shard(self._job, shard)
        yield shard.name


def run_graph(job: Job, shards: Sequence[ShardPlan], runner: str, flags: Sequence[str]) -> None:
    """Runs the graph over `shards` and waits for its end.

    Args:
      job: settings that all shards share.
      shards: the unfinished shards of the plan.
      runner: "dask" or a runner that Beam knows, by name or as a Python path.
      flags: options for Beam, as on a command line.

    Raises:
      UserError: if the scheduler of Dask cannot be reached.
    """
    flags = [*flags, f"--runner={_RUNNERS.get(runner, runner)}"]
    if runner == "dask" and not any(f.startswith(("--dask_npart", "--dask_part")) for f in flags):
        # The runner's default is 128 elements per task: one worker would do all shards of most jobs.
        flags.append("--dask_partition_size=1")
    pipeline = beam.Pipeline(options=PipelineOptions(flags))
    _ = (
        pipeline
        | "Shards" >> beam.Create(list(shards), reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Tokenize" >> beam.ParDo(TokenizeShard(job))
    )
    try:
        result = pipeline.run()
    except OSError as error:
        raise UserError(f"--runner={runner} cannot be reached: {error}") from None
    try:
        result.wait_until_finish()
    finally:
        if client := getattr(result, "client", None):  # of Dask; it also closes a local cluster
            client.close()


def check_options(runner: str, flags: Sequence[str]) -> None:
    """Raises UserError for an unknown runner or option.

    Beam only logs a warning for an unknown option, so a typing error would be easy to miss.
    """
    if runner == "dask":
        _quiet_dask()
    try:
        create_runner(_RUNNERS.get(runner, runner))
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(
            f"--runner={runner} is neither dask nor a runner of Beam: {error}"
        ) from None
    parser = _BeamArgumentParser(
        add_help=False, allow_abbrev=False, conflict_handler="resolve", exit_on_error=False
    )
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise UserError(f"Beam option: {error}") from None
    if unknown:
        name = unknown[0].split("=")[0]
        ours = [f"--{field.name}" for field in dataclasses.fields(TokenizeOptions)]
        similar = difflib.get_close_matches(name, [*ours, *parser._option_string_actions], 1)
        hint = f"; did you mean {similar[0]}?" if similar else ""
        raise UserError(f"option {name} is unknown to soda tokenize and to Beam{hint}")


def _quiet_dask() -> None:
    """Lets Dask log errors only, here and in the workers that it starts; call it before Dask is used."""
    import dask

    dask.config.set({"logging.distributed": "error"})
    import distributed

    logging.getLogger(distributed.__name__).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Port .* is already in use", category=UserWarning)
