"""Registries of user extensions; each maps names to functions with the same signature.

A file outside the package registers a function with a decorator and is loaded by `soda --plugin=FILE …`:

    from soda_jax.registry import METRICS

    @METRICS.register("update_norm")
    def update_norm(step):
        return optax.global_norm(step.updates)

| registry | signature | selected by |
|---|---|---|
| `EVALUATORS` | `(EvaluationContext) -> JSON-able scores` | `soda evaluate --tasks`, `evaluate.tasks` |
| `RECOGNIZERS` | `(argument) -> Recognizer`, see `evaluate.recognizer.load_recognizer` | `--recognizer=NAME:ARGUMENT` |
| `SPEAKER_ENCODERS` | `(argument) -> SpeakerEncoder`, see `evaluate.speakers.load_encoder` | `--speaker_encoder=NAME:ARGUMENT` |
| `GENERATION_TASKS` | a `Task`, registered with `generate.tasks.task` | `soda generate batch --task` |
| `TEXT_TOKENIZERS` | `(argument, folder) -> TextTokenizer`, see `tokens.text.load_tokenizer` | `--tokenizer=NAME:ARGUMENT` |
| `OPTIMIZERS` | `(OptimizerConfig, schedule, params, matrices) -> GradientTransformationExtraArgs` | `optimizer.name` |
| `ATTENTION_BACKENDS` | `(segment_ids, Placement) -> Attention` | `model.attention` |
| `LOSS_TERMS` | `(Decoder, hidden, batch) -> f32 sum over the targets` | `loss_terms` |
| `METRICS` | `(StepResult) -> f32 scalar` | `log.metrics` |
| `SCALING_RULES` | `() -> Rules`, see `soda_jax/scaling/rules.py` | `soda scaling plan --rules` |
"""

import difflib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from soda_jax.errors import UserError

# Environment variable that passes the plugins of a process to its child processes.
PLUGINS = "SODA_PLUGINS"
_loaded: set[Path] = set()

F = TypeVar("F", bound=Callable[..., Any])


class Registry:
    """Functions by name.

    Attributes:
      kind: what the functions are, for error messages.
    """

    def __init__(self, kind: str):
        """Creates an empty registry; `kind` is what the functions are, for error messages."""
        self.kind = kind
        self._functions: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Returns a decorator that registers a function under `name`.

        Raises:
          UserError: if another function is registered under this name.
        """

        def add(function: F) -> F:
            known = self._functions.setdefault(name, function)
            if known is not function:
                raise UserError(f"{self.kind} {name!r} is already registered; choose another name")
            return function

        return add

    def remove(self, name: str) -> None:
        """Removes a function, if it is registered."""
        self._functions.pop(name, None)

    def _load(self, name: str) -> Callable[..., Any] | None:
        """Returns a function or None; loads the plugins of the parent process if needed."""
        if name not in self._functions:
            for file in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
                load_plugin(file)
        return self._functions.get(name)

    def names(self) -> tuple[str, ...]:
        """Returns the registered names in the order of registration."""
        return tuple(self._functions)

    def __contains__(self, name: str) -> bool:
        return self._load(name) is not None

    def get(self, name: str, key: str) -> Callable[..., Any]:
        """Returns the function registered under `name`.

        Args:
          name: name of the function.
          key: the setting or option that contained the name, for the error message.

        Raises:
          UserError: if the name is not registered; the message suggests the nearest name.
        """
        function = self._load(name)
        if function is None:
            near = difflib.get_close_matches(name, self._functions, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(self._functions)}"
            raise UserError(f"{key} = {name!r} is not a registered {self.kind}; {hint}")
        return function


EVALUATORS = Registry("evaluator")
GENERATION_TASKS = Registry("generation task")
RECOGNIZERS = Registry("recognizer")
SPEAKER_ENCODERS = Registry("speaker encoder")
TEXT_TOKENIZERS = Registry("text tokenizer")
OPTIMIZERS = Registry("optimizer")
ATTENTION_BACKENDS = Registry("attention backend")
LOSS_TERMS = Registry("loss term")
METRICS = Registry("metric")
SCALING_RULES = Registry("set of scaling rules")


def split_names(text: str) -> tuple[str, ...]:
    """Returns the names of a comma-separated list, without surrounding whitespace or empty names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def load_plugin(file: str) -> None:
    """Imports a file that registers functions, unless it is loaded; child processes import it too.

    Raises:
      UserError: if the file is missing, is not a Python file, or raises an exception on import.
    """
    path = Path(file).absolute()
    if path in _loaded:
        return
    if not path.is_file():
        raise UserError(f"--plugin={file}: no such file; give a Python file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin={file} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"--plugin={file}: {type(error).__name__}: {error}") from None
    _loaded.add(path)
    known = [name for name in os.environ.get(PLUGINS, "").split(os.pathsep) if name]
    if str(path) not in known:
        os.environ[PLUGINS] = os.pathsep.join([*known, str(path)])
