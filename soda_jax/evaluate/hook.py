"""Runs registered evaluators on the parameters of a run while it trains."""

import dataclasses
import gc
import json
import sys
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.evaluate.evaluators import (
    FORMAT_VERSION,
    EvaluationContext,
    EvaluationOptions,
    about,
    check_packages,
)
from soda_jax.files import write_json
from soda_jax.generate.checkpoint import TrainedDecoder
from soda_jax.parallel import hosts
from soda_jax.parallel.placement import OnMesh
from soda_jax.registry import EVALUATORS, split_names
from soda_jax.schema import RunConfig

FOLDER = "evaluations"  # in the workdir
# Keys of scores with the number of items, in the order in which they are looked for.
_ITEMS = ("items", "utterances", "windows")
# The other processes wait while process 0 writes, and may be slower.
_SECONDS = 3600.0
# Settings of a run that do not change its parameters, except by rounding.
_NO_EFFECT = {"loss_chunk", "mesh", "checkpoint", "evaluate", "export", "log"}


class EvaluationHook:
    """Runs `evaluate.tasks` on the first `evaluate.limit` items; logs `evaluation/TASK/…`.

    The scores are those of `soda evaluate` and are written to `WORKDIR/evaluations/STEP.json`. If this file
    exists with the same settings of evaluation and training, for example after resuming from an earlier step,
    its numbers are logged and nothing is scored. The parameters stay on the mesh of the run; all processes call the evaluators.

    Attributes:
      every: steps between two evaluations.
    """

    def __init__(self, config: RunConfig, workdir: str | Path):
        """Checks everything that can be checked before training.

        Raises:
          UserError: if an evaluator is unknown, lacks its data or a package, or cannot run with the data or the
            processes of the run.
        """
        settings = config.evaluate
        tasks = tuple(dict.fromkeys(split_names(settings.tasks)))
        folders = _folders(settings.benchmarks)
        # Registers the evaluators and checks the folders that are given.
        options = EvaluationOptions(("loss",))
        for task in tasks:
            _check_task(task, folders, config)
        self.options = dataclasses.replace(
            options, tasks=tasks, limit=settings.limit, benchmarks=folders,
            max_seconds=settings.max_seconds,
        )  # fmt: skip
        check_packages(tasks)
        if not hosts.is_single_process():
            _check_shared(Path(workdir))
        self.every = settings.tasks_every_steps

    def __call__(self, run: Any) -> Mapping[str, float]:
        """Returns the numbers in the scores of `run.params`.

        In a single-process run, an evaluator that raises an exception is reported on stderr and in the file,
        and training continues.

        Raises:
          Exception: in a run of several processes, that of an evaluator, because the other processes
            would wait for this one.
        """
        path = run.workdir / FOLDER / f"{run.step}.json"
        # Only the file of process 0 counts, because on other hosts `workdir` may be another folder.
        values = hosts.broadcast_json(self._stored(path, run), "evaluation there", _SECONDS)
        if values is None:
            result = self._evaluate(run)
            # Decoded weights are in reference cycles, and training needs their memory now.
            gc.collect()
            if hosts.is_primary():
                write_json(path, result)
                print(f"evaluated step {run.step}: {path}", file=sys.stderr, flush=True)
            hosts.barrier("evaluation", _SECONDS)
            values = metrics(result)
        return values

    def _stored(self, path: Path, run: Any) -> dict[str, float] | None:
        """Returns the numbers in a file; None if there are none with these settings and without a failure."""
        try:
            found = json.loads(path.read_text("utf-8"))
            same = found["settings"] == self._settings() and not found["failed"]
            same = same and _trained(found["config"]) == _trained(run.metadata()["config"])
            return metrics(found) if same else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _settings(self) -> dict[str, Any]:
        options = self.options
        return {
            "tasks": list(options.tasks), "limit": options.limit, "max_seconds": options.max_seconds,
            "benchmarks": dict(options.benchmarks), "seed": options.seed,
        }  # fmt: skip

    def _evaluate(self, run: Any) -> dict[str, Any]:
        metadata = run.metadata()
        decoder = TrainedDecoder(
            run.step, metadata, run.dataset.layout, run.model, run.params, OnMesh(run.mesh)
        )
        # The context, with everything that refers to the parameters, ends with this call: they are donated
        # to the next step.
        context = EvaluationContext(run.workdir, self.options, decoder)
        failed: dict[str, str] = {}
        seconds: dict[str, float] = {}
        result: dict[str, Any] = {
            "settings": self._settings(), "format_version": FORMAT_VERSION, "step": run.step,
            "tasks": [],
        }  # fmt: skip
        for task in self.options.tasks:
            began = time.perf_counter()
            try:
                if "config" not in result:
                    result |= about(context)
                result[task] = EVALUATORS.get(task, "evaluate.tasks")(context)
                result["tasks"].append(task)
            except Exception as error:
                if not hosts.is_single_process():
                    raise
                failed[task] = str(error) if isinstance(error, UserError) else repr(error)
                if not isinstance(error, UserError):
                    traceback.print_exc()
                print(
                    f"{task} after step {run.step} failed, training continues: {failed[task]}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            seconds[task] = time.perf_counter() - began
        return result | {"failed": failed, "seconds": seconds}


def metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Returns `evaluation/TASK/…` of the scores of each task, with `items` and `seconds`, and `evaluation/seconds`.

    Numbers that repeat an option, such as the seed, are left out.
    """
    found: dict[str, float] = {}
    for task in result.get("tasks", ()):
        scores = result[task]
        function = getattr(EVALUATORS.get(task, "evaluate.tasks"), "metrics", None)
        numbers = function(scores) if function else dict(_numbers(scores))
        items = next((scores[key] for key in _ITEMS if key in scores), None)
        if items is not None:
            numbers.setdefault("items", items)
        found |= {f"evaluation/{task}/{name}": float(value) for name, value in numbers.items()}
    for task, seconds in result["seconds"].items():
        found[f"evaluation/{task}/seconds"] = seconds
    return found | {"evaluation/seconds": sum(result["seconds"].values())}


def _trained(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that determine the parameters at a step, as read from JSON."""
    return json.loads(json.dumps({k: v for k, v in config.items() if k not in _NO_EFFECT}))


def _numbers(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    options = {field.name for field in dataclasses.fields(EvaluationOptions)}
    for name, value in scores.items():
        if not prefix and name in options:
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def _folders(text: str) -> dict[str, str]:
    """Returns the folder of each task in `evaluate.benchmarks`."""
    found = {}
    for entry in split_names(text):
        task, equals, folder = (part.strip() for part in entry.partition("="))
        if not (task and equals and folder):
            raise UserError(f"evaluate.benchmarks = {text!r}: write TASK=DIR,TASK=DIR")
        found[task] = folder
    return found


def _check_task(task: str, folders: Mapping[str, str], config: RunConfig) -> None:
    """Raises UserError if an evaluator is unknown, or cannot run in a run with this config."""
    function = EVALUATORS.get(task, "evaluate.tasks")
    if getattr(function, "needs_data", False) and task not in folders:
        raise UserError(
            f"evaluate.tasks: {task} needs its data: set evaluate.benchmarks={task}=DIR, see "
            "docs/evaluate.md"
        )
    if not getattr(function, "needs_speech", False):
        return
    if all(source.composition == "text" for source in config.data.sources.values()):
        raise UserError(
            f"evaluate.tasks: {task} needs speech, and all sources of this run are text; remove it"
        )
    if not hosts.is_single_process():
        raise UserError(
            f"evaluate.tasks: {task} generates or encodes speech, which works in runs of one process only; "
            f"remove it, and score checkpoints with soda evaluate --tasks={task}"
        )


def _check_shared(workdir: Path) -> None:
    """Raises UserError unless all processes see the same workdir, from which they read the tokenizer."""
    folder = workdir / FOLDER
    name = hosts.broadcast_json(f".shared-{uuid.uuid4().hex}", "shared workdir")
    if hosts.is_primary():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    hosts.barrier("shared workdir written")
    missing = hosts.any_process(not (folder / name).exists(), "shared workdir seen")
    if hosts.is_primary():
        (folder / name).unlink()
    if missing:
        raise UserError(
            f"evaluate.tasks needs a workdir that all hosts share, and {workdir} is not: move it, or "
            "set evaluate.tasks=''"
        )
