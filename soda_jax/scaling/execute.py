"""Trains the runs of a study, one after another in one process or job."""

import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from soda_jax.checkpoints import CheckpointReader, folder
from soda_jax.data.dataset import Dataset, make_dataset
from soda_jax.errors import UserError
from soda_jax.evaluate.loss import LossHook
from soda_jax.parallel import hosts
from soda_jax.parallel.preemption import StopRequest
from soda_jax.progress import Progress, progress
from soda_jax.scaling.results import (
    check_loss,
    last_row,
    result_row,
    seconds_of,
    write_results,
)
from soda_jax.scaling.study import DONE, FAILED, OPEN, RunFolder, Study
from soda_jax.schema import RunConfig, to_dict
from soda_jax.train.hooks import RunView
from soda_jax.train.loop import PREEMPTED, DivergedError, train
from soda_jax.train.metric_logs import FILE, read_metrics
from soda_jax.train.program_cache import ProgramCache

LOG = "log.txt"
_REPORTS = 50  # calls of the progress hook per run

# Outcomes of a run, besides `PREEMPTED`: go on with the next one, or do not repeat this one.
_NEXT, _IMPOSSIBLE = 0, -1

Train = Callable[..., int]


def run_study(study: Study, attempts: int, train_run: Train = train) -> int:
    """Trains every run that is not finished and that no other process trains.

    A run that crashes or diverges is repeated until it has failed `attempts` times. A run that is
    impossible as configured is not repeated in this call.

    Args:
      study: the study; `results.csv` and `results.parquet` in its folder are written after each run.
      attempts: failed attempts after which a run has failed.
      train_run: trains a run, with the arguments of `soda_jax.train.loop.train`.

    Returns:
      0 if all runs are finished or in other processes, 1 if a run failed, 75 after SIGTERM.

    Raises:
      UserError: if the data cannot be opened, has another vocabulary than the plan, or has changed since
        the study began.
    """
    data = _DataSets()
    generations = hosts.broadcast_json(study.generations(), "generations of a study")
    for run in study.runs:
        run.generations = generations
    found = {run.job.name: data.check(run) for run in study.runs}
    if hosts.is_primary():
        study.save(found)
    trainer = _Trainer(data, train_run)
    impossible: set[str] = set()
    total = sum(run.job.cost for run in study.runs)
    bar_of = progress("FLOPs of the study", total) if hosts.is_primary() else nullcontext()
    # SIGTERM during the last step of a run, or between two runs, stops the study too.
    with StopRequest() as stop, bar_of as bar:
        while True:
            if stop.reached():
                _print("stopped between two runs; run the command again to continue")
                return PREEMPTED
            with contextlib.ExitStack() as stack:
                name = None
                if hosts.is_primary():
                    name = _claim(study, attempts, impossible, stack)
                name = hosts.broadcast_json(name, "run of a study")
                if name is None:
                    break
                run = next(run for run in study.runs if run.job.name == name)
                outcome = trainer.train(run, _Report(study, run, bar))
                if outcome == _IMPOSSIBLE:
                    impossible.add(name)
                if hosts.is_primary():
                    write_results(study, attempts)
                if outcome == PREEMPTED:
                    _print(f"stopped during {name}; run the command again to continue")
                    return PREEMPTED
    status = _summarize(study, attempts, impossible) if hosts.is_primary() else None
    return hosts.broadcast_json(status, "end of a study")


def _claim(
    study: Study, attempts: int, impossible: set[str], stack: contextlib.ExitStack
) -> str | None:
    """Returns the name of an open run, whose lock `stack` then holds; None if there is none."""
    for run in study.runs:
        if run.job.name in impossible or run.status(attempts) != OPEN:
            continue
        attempt = contextlib.ExitStack()
        # Another process may have finished the run before the lock was taken.
        if attempt.enter_context(run.claim()) and run.status(attempts) == OPEN:
            stack.push(attempt)
            return run.job.name
        attempt.close()
    return None


class _DataSets:
    """Opens each mixture of a study once, for its layout."""

    def __init__(self) -> None:
        self._open: dict[str, Dataset] = {}

    def of(self, config: RunConfig) -> Dataset:
        key = json.dumps(to_dict(config.data), sort_keys=True)
        if key not in self._open:
            self._open[key] = make_dataset(config.data, legal_sets=config.model.head == "legal")
        return self._open[key]

    def check(self, run: RunFolder) -> dict[str, Any]:
        """Returns digest and generations of the data of a run, which reads these from now on.

        Raises:
          UserError: if the data has another vocabulary than the plan.
        """
        job, dataset = run.job, self.of(run.attempt(run.job.config.seed)[0])
        size = dataset.layout.size
        if job.vocabulary and size != job.vocabulary:
            paths = ", ".join(source.path for source in job.config.data.sources.values())
            raise UserError(
                f"{paths}: {size:,} ids, but the plan is for {job.vocabulary:,}; write it again with "
                f"soda scaling plan --vocabulary={size}"
            )
        sources = dataset.config.sources
        run.generations = {name: source.generation for name, source in sources.items()}
        return {"digest": dataset.digest, "generations": run.generations}


class _Trainer:
    """Trains runs; equal programs are compiled once, and equal evaluations of consecutive runs."""

    def __init__(self, data: _DataSets, train_run: Train):
        self._data, self._train = data, train_run
        self._programs = ProgramCache()
        # Only that of the last run, because a hook has its batches in memory.
        self._last_loss: tuple[str, LossHook] | None = None

    def train(self, run: RunFolder, report: "_Report") -> int:
        """Trains a run to its end and stores what happened.

        Returns:
          `PREEMPTED` after SIGTERM, `_IMPOSSIBLE` if repeating it is useless, else `_NEXT`.
        """
        # The files may be those of process 0 only, so the other processes ask it.
        seed = hosts.broadcast_json(run.next_seed(), "seed of a run")
        config, workdir = run.attempt(seed)
        steps = CheckpointReader(folder.of_run(workdir, config.checkpoint.directory)).steps()
        report.begin(max(steps, default=0))
        self._note(run.start, max(steps, default=0))
        try:
            with _log_to(workdir / LOG):
                code = self._train(
                    config,
                    workdir,
                    hooks=[self._loss(config), report],
                    program_of=self._programs,
                )
        # In a job of several processes, all of them raise this error.
        except DivergedError as error:
            return self._failed(run.diverged, run, error)
        # Any other error in one of them has ended all of them.
        except UserError as error:
            return self._failed(run.crashed, run, error)
        except Exception as error:  # any bug or lack of memory must not end the study
            return self._failed(run.crashed, run, error)
        except KeyboardInterrupt:  # not a failure of the run
            self._note(run.preempted)
            raise
        if code == PREEMPTED:
            self._note(run.preempted)
            return PREEMPTED
        outcome = self._finish(run, config, workdir) if hosts.is_primary() else None
        return hosts.broadcast_json(outcome, "outcome of a run")

    def _loss(self, config: RunConfig) -> LossHook:
        dataset = self._data.of(config)
        key = self._programs.key(config, dataset.layout, to_dict(config.data))
        if self._last_loss is None or self._last_loss[0] != key:
            self._last_loss = key, LossHook(1, config.evaluate.batches)
        hook = self._last_loss[1]
        hook.every = config.evaluate.every_steps or config.steps
        return hook

    def _finish(self, run: RunFolder, config: RunConfig, workdir: Path) -> int:
        """Stores the row of a run that reached its last step, or that it diverged."""
        import jax

        rows = read_metrics(workdir / FILE)
        dataset = self._data.of(config)
        try:
            losses = result_row(last_row(rows, config, workdir))
            if reason := check_loss(losses, dataset.layout.size):
                return self._failed(run.diverged, run, DivergedError(reason))
        except UserError as error:
            return self._failed(run.crashed, run, error)
        front_end = dataset.front_end
        result = {
            **losses,
            "vocabulary": dataset.layout.size,
            "head": config.model.head,
            "tokenizer": f"{front_end.tokenizer}/{front_end.codec}",
            "seconds": round(seconds_of(rows, config.steps), 3),
            "tokens_per_second": round(statistics.median(row["tokens_per_second"] for row in rows)),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        run.finish(result)
        return _NEXT

    def _failed(self, note: Callable[[str], None], run: RunFolder, error: Exception) -> int:
        """Notes a failed attempt; returns whether to repeat the run in this call."""
        line = str(error).partition("\n")[0] or type(error).__name__
        line = line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"
        self._note(note, line)
        _print(f"{run.job.name} {note.__name__}: {line}")
        impossible = isinstance(error, UserError) and not isinstance(error, DivergedError)
        return _IMPOSSIBLE if impossible else _NEXT

    def _note(self, note: Callable[..., None], *values: Any) -> None:
        if hosts.is_primary():
            note(*values)


class _Report:
    """A hook that shows the progress of a run in that of the study."""

    def __init__(self, study: Study, run: RunFolder, bar: Progress | None):
        self._study, self._job, self._bar = study, run.job, bar
        self._steps = run.job.config.steps
        self._terminal = sys.stderr  # during a run, messages are written to its log
        self.every = max(1, self._steps // _REPORTS)
        self._done = 0

    def begin(self, step: int) -> None:
        """Counts the steps of earlier attempts and the runs of other processes as done.

        The time left follows from the seconds per FLOP of all finished runs, and from the number of
        processes that work on the study.
        """
        self._done = step
        if self._bar is None:
            return
        results = [(run.job.cost, run.result()) for run in self._study.runs]
        finished = [(cost, result["seconds"]) for cost, result in results if result]
        cost, seconds = (sum(values) for values in zip((0.0, 0.0), *finished, strict=True))
        done = cost + self._job.cost * step / self._steps
        if cost:
            seconds *= done / cost
        self._bar.restart(done, seconds / max(1, self._study.workers()))

    def __call__(self, view: RunView) -> Mapping[str, float]:
        """Advances the progress."""
        steps, self._done = view.step - self._done, view.step
        if self._bar is None:
            return {}
        note = f"{self._job.name} step {view.step}/{self._steps}"
        with contextlib.redirect_stderr(self._terminal):
            self._bar.advance(self._job.cost * steps / self._steps, note)
        return {}


def _summarize(study: Study, attempts: int, impossible: Collection[str]) -> int:
    """Writes the table and prints what is finished and what is not; returns 1 if a run failed, else 0."""
    # Also without a run to train: a process may have been killed after a run and before the table.
    rows = write_results(study, attempts)
    names = [run.job.name for run in study.runs]
    status = [row["status"] for row in rows]
    open_runs = status.count(OPEN)
    others = f", {open_runs} in other processes or not possible" if open_runs else ""
    _print(f"{study.folder}/results.csv: {status.count(DONE)} of {len(rows)} runs finished{others}")
    if not study.is_whole():
        _print(f"{study.folder} has more runs than this plan; run the command with the longer plan")
    failed = [
        (name, row)
        for name, row in zip(names, rows, strict=True)
        if row["status"] == FAILED or (row["status"] == OPEN and name in impossible)
    ]
    for name, row in failed:
        again = "; a higher --attempts repeats it" if row["status"] == FAILED else ""
        _print(f"{name}: failed {row['attempts']} times: {row['error']}{again}")
    return 1 if failed else 0


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Writes the messages of a run to a file instead of the terminal, in process 0."""
    if not hosts.is_primary():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1, encoding="utf-8") as file, contextlib.redirect_stderr(file):
        yield


def _print(line: str) -> None:
    if hosts.is_primary():
        print(line, file=sys.stderr, flush=True)
