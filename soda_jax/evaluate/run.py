"""All scores of a run's checkpoint, as one JSON-able dictionary."""

import importlib.util
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.evaluate.evaluators import EvaluationContext, Options
from soda_jax.registry import EVALUATORS

__all__ = ["FORMAT_VERSION", "Options", "evaluate"]

FORMAT_VERSION = 1


def evaluate(workdir: str | Path, options: Options = Options()) -> dict[str, Any]:
    """Scores a checkpoint on the validation splits of the data that it was trained on.

    Returns:
      format_version, step, sequence_length, tasks, and the scores of each task under its name.

    Raises:
      UserError: if the checkpoint or its data cannot be used, or a package is missing.
    """
    evaluators = {task: EVALUATORS.get(task, "tasks") for task in options.tasks}
    for task, function in evaluators.items():
        for package in getattr(function, "packages", ()):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{task} needs {package}: pip install 'soda-jax[eval]'")
    context = EvaluationContext(workdir, options)
    result: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": context.model.step,
        "sequence_length": context.data.sequence_length,
        "tasks": list(options.tasks),
    }
    return result | {task: function(context) for task, function in evaluators.items()}
