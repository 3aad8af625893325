"""The training loop: opens the data, restores a checkpoint, runs the steps, logs and saves."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from soda_jax.checkpoints import Checkpointer, CheckpointReader, folder
from soda_jax.data.loader import Loader
from soda_jax.errors import UserError
from soda_jax.parallel import hosts
from soda_jax.parallel.batches import local_rows, place_batch, rows_of_devices
from soda_jax.parallel.preemption import StopRequest
from soda_jax.schema import RunConfig, SafetyConfig, run_config
from soda_jax.train.hooks import Hook, RunView
from soda_jax.train.program import Program, make_program, use_compilation_cache
from soda_jax.train.run_files import open_checkpoints, open_data, run_metadata, write_run_files
from soda_jax.train.start import find_start
from soda_jax.train.telemetry import Telemetry
from soda_jax.train.trace import Trace
from soda_jax.train.wandb import package as wandb_package
from soda_jax.train.watchdog import FIRST_STEP, Watchdog

DONE = 0
# EX_TEMPFAIL in sysexits.h: the launch scripts for clusters restart a run with this exit status.
PREEMPTED = 75


class DivergedError(UserError):
    """Training does not make progress: too many updates in a row were skipped.

    All processes of a run raise it after the same step, because they compute the same metrics.
    """


def train(
    config: RunConfig | Mapping[str, Any],
    workdir: str | Path,
    *,
    hooks: Sequence[Hook] = (),
    profile_steps: tuple[int, int] | None = None,
    allow_data_change: bool = False,
    program_of: Callable[..., Program] | None = None,
) -> int:
    """Trains a model; resumes from the newest valid checkpoint in `workdir` if there is one.

    Without a checkpoint, parameters are initialized from `config.start_from`, or randomly.

    Args:
      config: a `RunConfig`, or an ml_collections config with the same keys.
      workdir: a local folder for metrics and the front end, and for the checkpoints unless
        `config.checkpoint.directory` is an absolute path or URL.
      hooks: evaluators, exporters and other observers.
      profile_steps: first and last step of a profiler trace, written to `workdir/profile`.
      allow_data_change: resume even if the data differs from the data of the checkpoint; tokenizer,
        codec and vocabulary layout must still match.
      program_of: makes the program, `make_program` by default; a `ProgramCache` shares the programs of
        several runs.

    Returns:
      `DONE` (0) after the last step, or `PREEMPTED` (75) after SIGTERM and a final checkpoint.

    Raises:
      UserError: if the config, the data or a checkpoint is invalid.
      DivergedError: if too many updates in a row were skipped.
    """
    config, workdir = run_config(config), folder.local_workdir(workdir)
    use_compilation_cache()
    with hosts.fail_together(raised_by_all=(DivergedError,)), ExitStack() as stack:
        stop_request = stack.enter_context(StopRequest())
        reader = CheckpointReader(folder.of_run(workdir, config.checkpoint.directory))
        start = find_start(config, workdir, reader)
        dataset = open_data(
            config.data, start, allow_data_change, legal_sets=config.model.head == "legal"
        )
        program = (program_of or make_program)(
            config, dataset.layout, len(dataset.source_names), codebooks=dataset.codebooks
        )
        if config.log.wandb_project:
            wandb_package()
        # Nothing is written before config and data are known to be valid.
        checkpointer = stack.enter_context(open_checkpoints(config.checkpoint, reader))
        write_run_files(config, dataset, workdir, start.earlier)
        state = start.state(program, checkpointer)
        # From here on, an error in one process ends all processes immediately: a clean shutdown would
        # deadlock, because the other processes wait in a collective for the failed one.
        stack.enter_context(hosts.fail_together(raised_by_all=(DivergedError,)))
        rows = local_rows(program.mesh, config.batch_size)
        groups = []
        if dataset.legal_sets:
            groups = rows_of_devices(program.mesh, config.batch_size, config.gradient_accumulation)
        skipped = start.step - int(state["accepted"])
        check = partial(_check_skipped, config.safety, checkpointer)
        with (
            Telemetry(config, workdir, dataset, program, start.step, skipped, check) as telemetry,
            Trace(profile_steps, workdir / "profile", start.step, config.steps) as trace,
            Loader(dataset, config.batch_size, start.windows, rows, groups=groups) as loader,
            Watchdog(workdir, config.safety.stuck_minutes) as watchdog,
        ):
            for step in range(start.step + 1, config.steps + 1):
                if trace.begins(step):
                    telemetry.flush()
                    trace.start(state)
                watchdog.now(f"step {step}", FIRST_STEP if step == start.step + 1 else 1.0)
                batch = place_batch(next(loader), rows, program.mesh, config.batch_size)
                state, metrics = program.step(state, batch)
                telemetry.flush()  # logs the previous step while this one runs
                telemetry.submit(step, metrics, loader.waited)
                last = step == config.steps
                due = [hook for hook in hooks if last or step % hook.every == 0]
                stop = stop_request.reached()
                save = stop or last or checkpointer.due(step)
                if not (save or due or trace.ends(step)):
                    checkpointer.raise_failure()
                    continue
                values = telemetry.read()
                if trace.ends(step):
                    trace.stop(state)
                # `loader.windows` is the position in the data after this step.
                metadata = partial(run_metadata, config, dataset, loader.windows, start.earlier)
                for hook in due:
                    watchdog.now(f"{type(hook).__name__} after step {step}")
                    view = RunView(step, config, workdir, program.mesh, program.model,
                                   state["params"], dataset, values, metadata)  # fmt: skip
                    values |= hook(view)
                telemetry.write(step, values)
                if due and not stop:  # a hook can take minutes
                    stop = stop_request.reached()
                if save or stop:
                    watchdog.now(f"saving after step {step}")
                    checkpointer.maybe_save(step, state, metadata, force=True)
                if stop and not last:
                    print(f"received SIGTERM: saved a checkpoint at step {step}", file=sys.stderr)
                    return PREEMPTED
    return DONE


def _check_skipped(
    safety: SafetyConfig, checkpointer: Checkpointer, step: int, values: Mapping[str, float]
) -> None:
    """Raises DivergedError, in every process, after too many consecutive skipped updates."""
    limit = safety.max_skipped_in_a_row
    if limit and values["skipped_in_a_row"] >= limit:
        checkpointer.wait()
        raise DivergedError(
            f"step {step}: {limit} updates in a row were skipped (gradient norm "
            f"{values['gradient_norm']:.3g}); the last good checkpoint is kept. Lower optimizer.peak_lr "
            "or inspect the data of these steps"
        )
