"""The Beam graph for clusters: shards of the plan → reshuffle → `tokenize_shard`.

The elements are small descriptions of shards, which any runner may distribute and retry. Workers
write the shards to the folder of the data set, which must be on a shared file system.
"""

import argparse
import logging
import warnings
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import create_runner

from soda_jax.errors import UserError
from tokenize_pipeline.options import unknown_option
from tokenize_pipeline.plan import ShardPlan
from tokenize_pipeline.settings import Job
from tokenize_pipeline.worker import tokenize_shard

_RUNNERS = {"dask": "apache_beam.runners.dask.dask_runner.DaskRunner"}


def run_graph(job: Job, shards: Sequence[ShardPlan], runner: str, flags: Sequence[str]) -> None:
    """Tokenizes `shards` on a cluster and waits until all are finished.

    Args:
      job: the job, from `for_workers`.
      shards: the unfinished shards of the plan.
      runner: "dask", or the name or import path of a Beam runner.
      flags: options for Beam, as on a command line.

    Raises:
      UserError: if the Dask scheduler cannot be reached.
    """
    flags = [*flags, f"--runner={_RUNNERS.get(runner, runner)}"]
    if runner == "dask" and not any(f.startswith(("--dask_npart", "--dask_part")) for f in flags):
        # With the default of 128 elements per task, one worker would get all shards of most jobs.
        flags.append("--dask_partition_size=1")
    pipeline = beam.Pipeline(options=PipelineOptions(flags))
    _ = (
        pipeline
        | "Shards" >> beam.Create(list(shards), reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Tokenize" >> beam.Map(lambda shard: tokenize_shard(job, shard))
    )
    try:
        result = pipeline.run()
    except OSError as error:
        raise UserError(f"--runner={runner} cannot be reached: {error}") from None
    try:
        result.wait_until_finish()
    finally:
        if client := getattr(result, "client", None):  # Dask; this also closes a local cluster
            client.close()


def check_options(runner: str, flags: Sequence[str]) -> None:
    """Raises UserError for an unknown runner or option.

    Beam itself only logs a warning for an unknown option.
    """
    if runner == "dask":
        _quiet_dask()
    try:
        create_runner(_RUNNERS.get(runner, runner))
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(
            f"--runner={runner} is neither dask nor a runner of Beam: {error}"
        ) from None
    parsers: list[argparse.ArgumentParser] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
    parsers[0].exit_on_error = False
    try:
        _, unknown = parsers[0].parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise UserError(f"Beam option: {error}") from None
    if unknown:
        beam_options = parsers[0]._option_string_actions
        raise unknown_option(unknown[0], "soda tokenize and to Beam", beam_options)


def _quiet_dask() -> None:
    """Limits the log of Dask and its workers to errors; call it before using Dask."""
    import dask

    dask.config.set({"logging.distributed": "error"})
    import distributed

    logging.getLogger(distributed.__name__).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Port .* is already in use", category=UserWarning)
