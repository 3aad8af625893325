"""The story of a run: open, restore, step, log, save, stop."""

import functools
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import jax

from soda_jax.checkpoints import Checkpointer, CheckpointReader, folder
from soda_jax.data.dataset import Dataset
from soda_jax.data.loader import Loader
from soda_jax.data.loss_vector import loss_vector
from soda_jax.errors import UserError
from soda_jax.model.flops import training_flops_per_token
from soda_jax.parallel import hosts
from soda_jax.parallel.batches import local_rows, place_batch
from soda_jax.parallel.preemption import StopRequest
from soda_jax.progress import progress
from soda_jax.train import run as parts
from soda_jax.train.hardware import peak_flops
from soda_jax.train.hooks import Hook, RunView
from soda_jax.train.metrics import note_start, open_logs
from soda_jax.train.start import check_resumable, find_start
from soda_jax.train.trace import Trace
from soda_jax.train.wandb import package as wandb_package
from soda_jax.train.watchdog import FIRST_STEP, Watchdog

DONE = 0
# EX_TEMPFAIL of sysexits.h: the launch scripts start the run again.
PREEMPTED = 75


def train(
    config: Any,
    workdir: str | Path,
    *,
    hooks: Sequence[Hook] = (),
    profile_steps: tuple[int, int] | None = None,
    allow_data_change: bool = False,
) -> int:
    """Trains `config` in `workdir`, from its newest valid checkpoint if it has one.

    A run that has none begins with the parameters of `config.start_from`, or with random ones.

    Args:
      config: an ml_collections config with the keys of `configs/base.py`.
      workdir: a local folder; metrics and the front end go there, and the checkpoints unless
        `config.checkpoint.directory` names another place.
      hooks: evaluators and the like.
      profile_steps: first and last step of a profiler trace, written to `workdir/profile`.
      allow_data_change: resume although the data is not the checkpoint's; tokenizer, codec and
        vocabulary layout must be.

    Returns:
      `DONE` (0) after the last step, or `PREEMPTED` (75) after SIGTERM, with everything saved.

    Raises:
      UserError: for faults of config, data or checkpoints, and when too many updates in a row had
        to be skipped.
    """
    workdir = folder.local_workdir(workdir)
    parts.use_compilation_cache()
    with hosts.fail_together(), ExitStack() as stack:
        stop_request = stack.enter_context(StopRequest())
        # Restore point: the newest checkpoint whose digest agrees.
        reader = CheckpointReader(folder.of_run(workdir, config.checkpoint.directory))
        report = reader.choose() if reader.steps() else None
        metadata = reader.metadata(report.step) if report else None
        if report and metadata:
            check_resumable(reader, report.step, metadata)
        start = None if report else find_start(config, workdir)
        dataset = parts.open_data(config, metadata, allow_data_change, reader.directory)
        if start:
            start.check_data(dataset)
        program = parts.make_program(config, dataset.layout, len(dataset.source_names))
        if config.log.wandb_project:
            wandb_package()
        # Nothing is written before config and data are known to be sound.
        checkpointer = stack.enter_context(parts.open_checkpoints(config, reader))
        earlier = start.earlier() if start else metadata
        parts.write_run_files(config, dataset, workdir, earlier)
        if report:
            state, metadata, _ = checkpointer.restore(program.abstract, report.step)
            print(f"resumed from step {report.step}", file=sys.stderr)
        elif start:
            state, metadata = start.state(program), start.earlier()
        else:
            state = program.init()
        # From here on a fault of one process ends all at once: to close in order, it would have to
        # wait for the others, which wait for it in a collective.
        stack.enter_context(hosts.fail_together())
        step, windows = (report.step, metadata["windows"]) if report and metadata else (0, 0)

        rows = local_rows(program.mesh, config.batch_size)
        skipped = step - int(state["accepted"])
        log = _Log(config, workdir, dataset, program, step, skipped)
        with (
            log,
            Trace(profile_steps, workdir / "profile", step, config.steps) as trace,
            Loader(dataset, config.batch_size, windows, rows) as loader,
            progress("train", config.steps, start=step) as bar,
            Watchdog(workdir, config.safety.stuck_minutes) as watchdog,
            _Ahead(config, checkpointer, log, bar) as ahead,
        ):
            patience = FIRST_STEP
            while step < config.steps:
                if trace.begins(step + 1):
                    ahead.write()
                    trace.start(state)
                watchdog.now(f"step {step + 1}", patience)
                batch = place_batch(next(loader), rows, program.mesh, config.batch_size)
                state, metrics = program.step(state, batch)
                step, patience = step + 1, 1.0
                # A step's numbers are read while the next one runs, so that the devices never wait
                # for the host, unless something is to be done with the state between the two.
                ahead.write()
                ahead.step = (step, metrics, loader.waited)
                due = [hook for hook in hooks if step % hook.every == 0 or step == config.steps]
                stop = stop_request.reached()
                save = stop or step == config.steps or checkpointer.due(step)
                if not (save or due or trace.ends(step)):
                    checkpointer.raise_failure()
                    continue

                values = ahead.read()
                if trace.ends(step):
                    trace.stop(state)
                # The loader's count is the position in the data: what step `step` has consumed.
                about = functools.partial(
                    parts.run_metadata, config, dataset, loader.windows, metadata
                )
                for hook in due:
                    watchdog.now(f"{type(hook).__name__} after step {step}")
                    view = RunView(
                        step,
                        config,
                        workdir,
                        program.mesh,
                        program.model,
                        state["params"],
                        dataset,
                        values,
                        about,
                    )
                    values |= hook(view)
                log.write(step, values, bar)
                if due and not stop:  # a hook may take long
                    stop = stop_request.reached()
                if save or stop:
                    watchdog.now(f"saving after step {step}")
                    checkpointer.maybe_save(step, state, about, force=True)
                if stop and step < config.steps:
                    print(f"asked to stop: saved step {step}", file=sys.stderr)
                    return PREEMPTED
    return DONE


def _stop_if_broken(
    config: Any, step: int, values: Mapping[str, float], checkpointer: Checkpointer
) -> None:
    limit = config.safety.max_skipped_in_a_row
    if limit and values["skipped_in_a_row"] >= limit:
        checkpointer.wait()  # all processes come here alike
        raise UserError(
            f"step {step}: {limit} updates in a row were skipped (gradient norm "
            f"{values['gradient_norm']:.3g}); the last good checkpoint stands. Lower optimizer.peak_lr or "
            "look at the data of these steps"
        )


class _Log:
    """Turns a step's device metrics into floats with rates, and writes them on process 0."""

    def __init__(self, config, workdir, dataset, program, start_step, skipped):
        self._config, self._dataset = config, dataset
        self._logs = open_logs(config, workdir, start_step) if hosts.is_primary() else []
        decoder = program.model.config
        tokens = config.batch_size * config.data.sequence_length
        self._flops = training_flops_per_token(decoder, config.data.sequence_length) * tokens
        self._tokens = tokens
        self._peak, source = peak_flops(list(program.mesh.devices.flat))
        about = {
            "parameters": decoder.parameters,
            "tokens_a_step": tokens,
            "devices": f"{program.mesh.size} x {program.mesh.devices.flat[0].device_kind}",
            "peak_flops": self._peak,
            "peak_source": source,
        }
        if hosts.is_primary():
            note_start(workdir, start_step, about)
        print(
            f"{decoder.parameters:,} parameters, {tokens:,} tokens a step, peak "
            f"{self._peak / 1e12:.3g} TFLOP/s ({source})",
            file=sys.stderr,
        )
        self._frame_rate = _frame_rates(dataset)
        self._before, self._waited, self._skipped = time.perf_counter(), 0.0, skipped

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        for log in self._logs:
            log.close(failed=kind is not None)

    def step(self, step: int, metrics: Mapping[str, jax.Array], waited: float) -> dict[str, float]:
        got = jax.device_get(metrics)
        now = time.perf_counter()
        seconds, self._before = now - self._before, now
        dataset = self._dataset
        names = dataset.layout.class_names
        values = loss_vector(got["nll"], got["count"], names, dataset.source_names)
        self._skipped += int(got["skipped"])
        tokens = float(got["count"].sum())
        frames = 0.0  # a semantic token each
        if "semantic" in names:
            frames = float(got["count"][:, names.index("semantic")].sum())
        values |= {
            "loss": float(got["loss"]),
            "z_loss": self._config.optimizer.z_loss * float(got["log_z_squared"]) / max(tokens, 1),
            "gradient_norm": float(got["gradient_norm"]),
            "parameter_norm": float(got["parameter_norm"]),
            "learning_rate": float(got["learning_rate"]),
            "skipped": float(self._skipped),
            "skipped_in_a_row": float(got["skipped_in_a_row"]),
            "seconds": seconds,
            "tokens_per_second": self._tokens / seconds,
            "audio_seconds_per_second": frames / self._frame_rate / seconds,
            "flops_per_second": self._flops / seconds,
            "mfu": self._flops / seconds / self._peak,
            "data_wait_seconds": waited - self._waited,
        }
        self._waited = waited
        # Only under data.on_corrupt_record=mask, or where a store fails now and then; else there is no such line.
        damaged = sum(len(source.damage) for source in dataset.sources)
        if damaged:
            values["masked_records"] = float(damaged)
        if repeated := dataset.storage.remote.repeated_reads:
            values["repeated_reads"] = float(repeated)
        return values

    def write(self, step: int, values: Mapping[str, float], bar: Any) -> None:
        # Time spent in hooks is not the next step's.
        self._before = time.perf_counter()
        every = self._config.log.every_steps
        due = step == self._config.steps or (every and step % every == 0)
        for log in self._logs if due else ():
            log.write(step, values)
        bar.advance(note=f"loss {values.get('loss/all', float('nan')):.3f}")


class _Ahead:
    """The numbers of a step that still runs; a run that fails leaves none unwritten."""

    def __init__(self, config: Any, checkpointer: Checkpointer, log: _Log, bar: Any):
        self.step: tuple[int, Mapping[str, jax.Array], float] | None = None
        self._config, self._checkpointer, self._log, self._bar = config, checkpointer, log, bar

    def read(self) -> dict[str, float]:
        """Waits for the step and takes its numbers."""
        assert self.step is not None
        step, self.step = self.step, None
        values = self._log.step(*step)
        try:
            _stop_if_broken(self._config, step[0], values, self._checkpointer)
        except UserError:
            self._log.write(step[0], values, self._bar)
            raise
        return values

    def write(self) -> None:
        """Writes the numbers of the step, if there is one."""
        if self.step is not None:
            number = self.step[0]
            self._log.write(number, self.read(), self._bar)

    def __enter__(self) -> "_Ahead":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # With several processes the step may wait for one that is gone.
        if kind is not None and issubclass(kind, Exception) and hosts.is_single_process():
            with suppress(Exception):
                self.write()


def _frame_rates(dataset: Dataset) -> float:
    """Frames a second of the mixture's codec; 1 where there is no audio."""
    rates = [s.manifest.codec["frame_rate"] for s in dataset.sources if s.manifest.codec]
    return rates[0] if rates else 1.0
