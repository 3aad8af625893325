"""`soda evaluate`: scores a checkpoint with registered evaluators.

An evaluator is a function from an `EvaluationContext` to JSON-serializable scores. It is registered
under a name for `soda evaluate --tasks`. The context loads model and data on first use.
"""

import dataclasses
import hashlib
import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from soda_jax import __version__
from soda_jax.data.format.manifest import Manifest
from soda_jax.errors import UserError
from soda_jax.evaluate import benchmarks
from soda_jax.evaluate.baselines import fit_baselines
from soda_jax.evaluate.choices import Entry
from soda_jax.evaluate.generation import HeldOutGenerator
from soda_jax.evaluate.likelihood import Likelihood, ModelLikelihood
from soda_jax.evaluate.loss import held_out_sums, in_float32
from soda_jax.evaluate.partial import PartialResults
from soda_jax.evaluate.recognizer import identity, load_recognizer
from soda_jax.evaluate.speech import (
    HeldOutUtterance,
    evaluate_asr,
    evaluate_tts,
    evaluate_without_grammar,
    held_out_utterances,
)
from soda_jax.evaluate.windows import Sums, Windows, open_windows
from soda_jax.files import file_state, is_url
from soda_jax.generate.checkpoint import TrainedDecoder, load_decoder
from soda_jax.generate.engine import LARGEST_SEED
from soda_jax.generate.speech_model import SpeechModel, load, with_front_end
from soda_jax.model.decoding import check_dtype, rounded_params
from soda_jax.registry import EVALUATORS
from soda_jax.schema import DataConfig, parse
from soda_jax.tokens.documents import most_codebooks
from soda_jax.tokens.front_end import FrontEnd
from soda_jax.tokens.text import TextTokenizer, load_tokenizer

FORMAT_VERSION = 3
# Utterances of asr, tts and grammar by default.
_UTTERANCES = 64
Scores = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation.

    Attributes:
      tasks: names of evaluators.
      limit: largest number of items of each task, 0 for all; by default 64 for asr, tts, grammar,
        retrieval and fad, all for others.
      step: step of the checkpoint, None for the newest valid one.
      codec: spec of the codec; empty to use the codec in the workdir.
      paths: current folders, by source name, of data sets that have moved.
      max_seconds: maximum length of a generated utterance in seconds.
      seed: seed of the sampling.
      head: "full" or "legal", the ids over which the loss of a target is normalized; empty for the
        `model.head` of the run.
      mesh: size of each mesh axis, see `soda_jax.load`; None for one device.
      dtype: dtype of the weights, one of `soda_jax.model.decoding.DTYPES`; empty for float32 in the loss and
        the default of the platform when sampling.
      benchmarks: folder of each benchmark, by task.
      recognizer: the recognizer of TTS scores, see `load_recognizer`.
      speaker_encoder: the encoder of speaker similarities, see `load_encoder`.
      shots: number of examples (audio and transcript) before each recording to be transcribed, in `librispeech`.
      partial: folder for the results of single items, from which a stopped evaluation continues; None =
        they are not kept.
    """

    tasks: tuple[str, ...] = ("loss", "baselines", "asr", "tts")
    limit: int | None = None
    step: int | None = None
    codec: str = ""
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_seconds: float = 15.0
    seed: int = 0
    head: str = ""
    mesh: Mapping[str, int] | None = None
    dtype: str = ""
    benchmarks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    recognizer: str = "whisper"
    speaker_encoder: str = "voicefilter"
    shots: int = 0
    partial: Path | None = None

    def __post_init__(self) -> None:
        benchmarks.load()
        if not self.tasks:
            raise UserError(f"tasks is empty; give at least one of {', '.join(EVALUATORS.names())}")
        for task in self.tasks:
            function = EVALUATORS.get(task, "tasks")
            if getattr(function, "needs_data", False) or task in self.benchmarks:
                self._check_folder(task)
        for name in self.benchmarks:
            if name not in self.tasks:
                raise UserError(f"data of {name} is given, but {name} is not one of the tasks")
        if self.head not in ("", "full", "legal"):
            raise UserError(f"head {self.head!r} is unknown: use full or legal")
        if self.dtype:
            check_dtype(self.dtype)
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UserError(f"seed {self.seed} must be from 0 to {LARGEST_SEED:,}")
        if self.shots < 0:
            raise UserError(f"shots {self.shots} must be at least 0")
        if (self.limit or 0) < 0 or not 0 < self.max_seconds < math.inf:
            raise UserError(
                f"limit {self.limit} must be at least 0, and max_seconds {self.max_seconds} finite and "
                "above 0"
            )

    def _check_folder(self, task: str) -> None:
        if not self.benchmarks.get(task):
            raise UserError(f"{task} needs its data: pass --data={task}=DIR, see docs/evaluate.md")
        if not Path(self.benchmarks[task]).is_dir():
            raise UserError(f"data of {task}: {self.benchmarks[task]} is not a folder")


class EvaluationContext:
    """A checkpoint, its training data and the options, as evaluators receive them.

    Attributes:
      options: see `EvaluationOptions`.
      opened: the results that `partial` has opened.
    """

    def __init__(
        self,
        workdir: str | Path,
        options: EvaluationOptions,
        decoder: TrainedDecoder | None = None,
    ):
        """Stores the arguments; model and data are loaded on first use.

        Args:
          workdir: the run's folder.
          options: see `EvaluationOptions`.
          decoder: the decoder to score instead of a checkpoint, for example that of a run that is training.
        """
        self._workdir, self.options, self._decoder = workdir, options, decoder
        self.opened: list[PartialResults] = []

    @cached_property
    def speech_model(self) -> SpeechModel:
        """The checkpoint with tokenizer and codec."""
        options = self.options
        if self._decoder is not None:
            return with_front_end(
                self._decoder, self._workdir, codec=options.codec, dtype=options.dtype
            )
        return load(
            self._workdir, step=options.step, codec=options.codec, dtype=options.dtype,
            mesh=options.mesh,
        )  # fmt: skip

    @cached_property
    def model(self) -> SpeechModel | TrainedDecoder:
        """The checkpoint, with tokenizer and codec only if one of the evaluators needs them."""
        tasks = (EVALUATORS.get(task, "tasks") for task in self.options.tasks)
        if any(getattr(task, "needs_speech", False) for task in tasks):
            return self.speech_model
        if self._decoder is not None:
            return self._decoder
        return load_decoder(self._workdir, self.options.step, self.options.mesh)

    @cached_property
    def data(self) -> DataConfig:
        """The `data` settings of the checkpoint, with the current paths of the sources.

        Raises:
          UserError: if a source is unknown or missing, or its front end differs from the model's.
        """
        config = parse(DataConfig, self.model.metadata["data"], "data")
        sources = dict(config.sources)
        for name, path in self.options.paths.items():
            if name not in sources:
                raise UserError(
                    f"the run has no source {name}; its sources are {', '.join(sources)}"
                )
            sources[name] = dataclasses.replace(sources[name], path=path)
        for name, source in sources.items():
            if not source.path or not (is_url(source.path) or Path(source.path).is_dir()):
                raise UserError(
                    f"source {name}: {source.path or 'its data'} does not exist here; pass its folder "
                    f"with --source={name}=DIR"
                )
            manifest = Manifest.load(source.path, source.generation)
            trained = FrontEnd.from_metadata(self.model.metadata)
            manifest.front_end.check_same(trained, f"source {name}", "the model")
        return dataclasses.replace(config, sources=sources)

    @cached_property
    def windows(self) -> Windows:
        """All windows of the validation splits."""
        return open_windows(self.data, legal_sets=self.head == "legal")

    @cached_property
    def head(self) -> str:
        """The ids over which the loss of a target is normalized, "full" or "legal"."""
        return self.options.head or self.model.model.config.head

    @cached_property
    def held_out(self) -> list[HeldOutUtterance]:
        """The first `options.limit` held-out utterances; all if the limit is 0."""
        limit = self.options.limit
        return held_out_utterances(self.data, _UTTERANCES if limit is None else limit)

    @cached_property
    def generator(self) -> HeldOutGenerator:
        """Continues the prompts of held-out utterances; all tasks share its results."""
        model, options = self.speech_model, self.options
        kept = self.partial("generated", seed=options.seed, weights_dtype=model.engine.dtype)
        return HeldOutGenerator(model, kept, max_seconds=options.max_seconds, seed=options.seed)

    def first(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Returns the first `options.limit` entries, evenly from all parts; all without a limit."""
        if not self.options.limit:
            return entries
        parts: dict[str, list[Entry]] = {}
        for entry in entries:
            parts.setdefault(entry.part, []).append(entry)
        turns = itertools.chain.from_iterable(itertools.zip_longest(*parts.values()))
        chosen = {e.name for e in itertools.islice(filter(None, turns), self.options.limit)}
        return [entry for entry in entries if entry.name in chosen]

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The text tokenizer of the run."""
        speech = vars(self).get("speech_model")
        return speech.tokenizer if speech else load_tokenizer(Path(self._workdir) / "tokenizer")

    def require(self, task: str, *kinds: str) -> None:
        """Raises UserError unless the training data contains each of `kinds`, "text" or "audio"."""
        sources = self.model.metadata["data"].get("sources", {}).values()
        compositions = {source["composition"] for source in sources}
        shows = {
            "text": any(c == "text" or c.endswith("T") for c in compositions),
            "audio": compositions != {"text"},
        }
        for kind in kinds:
            if compositions and not shows[kind]:
                raise UserError(f"{task} needs a model that was trained with {kind}")

    def data_folder(self, task: str) -> Path:
        """Returns the folder of a benchmark."""
        return Path(self.options.benchmarks[task])

    @cached_property
    def likelihood(self) -> Likelihood:
        """Scores token sequences: over all ids, for a model trained with the legal head also over these.

        The weights are rounded to `options.dtype`. With `options.head`, only this normalizer is used.
        """
        heads = tuple(dict.fromkeys(("full", self.model.model.config.head)))
        sources = self.model.metadata["data"].get("sources", {})
        codebooks = most_codebooks(sources.values(), self.model.layout)
        return ModelLikelihood(
            self.scored_model, codebooks, (self.options.head,) if self.options.head else heads
        )

    @cached_property
    def scored_model(self) -> TrainedDecoder:
        """The checkpoint for losses, in f32, with the weights rounded to `options.dtype`."""
        decoder, dtype = in_float32(self.model), self.weights_dtype
        if dtype == "float32":
            return decoder
        rounded = jax.jit(rounded_params, static_argnums=1)(decoder.params, dtype)
        return dataclasses.replace(decoder, params=rounded)

    def loss_sums(self, task: str, windows: Windows, batch_size: int = 8, limit: int = 0) -> Sums:
        """Returns the loss sums over windows with the weights rounded to `options.dtype`, see `held_out_sums`.

        Raises:
          UserError: if a loss is not finite.
        """
        sums = held_out_sums(self.scored_model, windows, batch_size, limit)
        bad = ~np.isfinite(sums["nll"]).all(axis=1)
        if bad.any():
            source = windows.source_names[int(bad.argmax())]
            raise UserError(
                f"{task}: the loss of source {source} is not finite: the parameters of step {self.model.step} in "
                f"{self._workdir} are damaged or the training diverged; score an earlier checkpoint with --step=N"
            )
        return sums

    @property
    def weights_dtype(self) -> str:
        """The dtype to which the weights are rounded in losses."""
        return self.options.dtype or "float32"

    def partial(self, task: str, **settings: Any) -> PartialResults:
        """Returns the results of a task so far.

        Args:
          task: name of the task, or of what several tasks share.
          **settings: what the results depend on besides the checkpoint and the data. A list of entries
            is represented by a hash, which also covers the size and time of the sound files that they name.
        """

        def digest(entries: Sequence[Any]) -> str:
            speech = getattr(EVALUATORS.get(task, "tasks"), "needs_speech", False)
            contents = [getattr(entry, "content", None) for entry in entries] if speech else []
            paths = [
                part
                for content in contents
                if isinstance(content, tuple)
                for part in content
                if isinstance(part, str)
            ]
            states = [file_state(path) for path in paths]
            return hashlib.sha256(repr((entries, states)).encode()).hexdigest()

        hashed = {
            name: digest(value) if name == "entries" else value for name, value in settings.items()
        }
        given = {
            "task": task, "checkpoint": self.model.digest, "step": self.model.step,
            "workdir": str(Path(self._workdir).resolve()), "mesh": self.options.mesh,
            "soda_jax": __version__, **hashed,
        }  # fmt: skip
        results = PartialResults(self.options.partial, task, given)
        self.opened.append(results)
        return results


Evaluator = Callable[[EvaluationContext], Scores]


def evaluator(
    name: str,
    *,
    packages: Sequence[str] = (),
    needs_speech: bool = False,
    needs_data: bool = False,
    lines: Callable[[str, Mapping[str, Any]], list[str]] | None = None,
    metrics: Callable[[Mapping[str, Any]], dict[str, float]] | None = None,
) -> Callable[[Evaluator], Evaluator]:
    """Returns a decorator that registers an evaluator.

    Args:
      name: name of the evaluator in `--tasks`.
      packages: modules that must be installed, checked before anything is scored.
      needs_speech: whether the evaluator uses `context.speech_model`.
      needs_data: whether it uses `context.data_folder`, a folder that `--data` must name.
      lines: returns the scores of a task as lines for a terminal; by default every number is printed.
      metrics: returns the scores of a task as numbers by name, for the metrics of training; by default all.
    """

    def add(function: Evaluator) -> Evaluator:
        vars(function).update(
            packages=tuple(packages), needs_speech=needs_speech, needs_data=needs_data, lines=lines,
            metrics=metrics,
        )  # fmt: skip
        return EVALUATORS.register(name)(function)

    return add


@evaluator("loss")
def score_loss(context: EvaluationContext) -> Scores:
    """Measures the held-out loss.

    Returns:
      a dict with windows, tokens, left_out, classes, sources, head (the normalizer, "full" or "legal"),
      compute_dtype, weights_dtype, and model (the loss vector).

    Raises:
      UserError: if a loss is not finite.
    """
    windows = context.windows
    sums = context.loss_sums("loss", windows)
    return {
        "windows": windows.count,
        "tokens": int(sums["count"].sum()),
        "left_out": list(windows.left_out),
        "classes": list(windows.layout.class_names),
        "sources": list(windows.source_names),
        "head": context.head,
        "compute_dtype": context.scored_model.model.config.compute_dtype,
        "weights_dtype": context.weights_dtype,
        "model": windows.loss_vector(sums),
    }


@evaluator("baselines")
def score_baselines(context: EvaluationContext) -> Scores:
    """Returns a dict with training_tokens, head (the normalizer, that of the model), unigram and bigram."""
    windows, fitted = context.windows, fit_baselines(context.data)
    vectors = {name: windows.loss_vector(sums) for name, sums in fitted.sums(windows).items()}
    return {"training_tokens": fitted.tokens, "head": context.head, **vectors}


@evaluator("asr", packages=("jiwer",), needs_speech=True)
def score_asr(context: EvaluationContext) -> Scores:
    """Returns the word error rates of transcripts, see `evaluate_asr`."""
    return evaluate_asr(context.generator, context.held_out)


@evaluator("tts", packages=("jiwer",), needs_speech=True)
def score_tts(context: EvaluationContext) -> Scores:
    """Returns the word error rates of generated speech, see `evaluate_tts`."""
    recognizer = load_recognizer(context.options.recognizer)
    results = context.partial(
        "tts",
        recognizer=identity(context.options.recognizer, recognizer),
        codec=context.speech_model.codec.fingerprint,
    )
    return evaluate_tts(context.generator, context.held_out, recognizer, results)


@evaluator("grammar", needs_speech=True)
def score_without_grammar(context: EvaluationContext) -> Scores:
    """Returns what the grammar changes when the model samples, see `evaluate_without_grammar`."""
    return evaluate_without_grammar(context.generator, context.held_out)


def check_packages(tasks: Sequence[str]) -> None:
    """Raises UserError if a package that one of the evaluators needs is not installed."""
    for task in tasks:
        for package in getattr(EVALUATORS.get(task, "tasks"), "packages", ()):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{task} needs {package}: pip install 'soda-jax[eval]'")


def about(context: EvaluationContext) -> dict[str, Any]:
    """Returns the entries of an evaluation before its first task, see `evaluate`."""
    options = context.options
    return {
        "format_version": FORMAT_VERSION,
        "step": context.model.step,
        "checkpoint": context.model.digest,
        "config": context.model.metadata["config"],
        "sequence_length": context.model.metadata["data"]["sequence_length"],
        "tasks": [],
        "seed": options.seed,
        "limit": options.limit,
        "weights_dtype": context.weights_dtype,
        "compute_dtype": context.scored_model.model.config.compute_dtype,
        "versions": {"soda_jax": __version__, "jax": jax.__version__, "numpy": np.__version__},
    }


def evaluate(
    workdir: str | Path,
    options: EvaluationOptions | None = None,
    save: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Scores a checkpoint on the validation splits of its training data, or on benchmarks.

    Args:
      workdir: the run's folder.
      options: see `EvaluationOptions`.
      save: called with the result after each task; `tasks` names the tasks so far. After the last one, the results
        of single items are removed.

    Returns:
      a JSON-serializable dict with format_version, step, checkpoint (its digest), config,
      sequence_length, tasks, seed, limit, weights_dtype, compute_dtype, versions, and the scores by task.

    Raises:
      UserError: if checkpoint or data cannot be used, or a package is missing.
    """
    options = options or EvaluationOptions()
    check_packages(options.tasks)
    context = EvaluationContext(workdir, options)
    result = about(context)
    if options.paths:
        _ = context.data  # checks the names of the sources
    for task in dict.fromkeys(options.tasks):
        result[task] = EVALUATORS.get(task, "tasks")(context)
        result["tasks"].append(task)
        save(result)
    for results in context.opened:
        results.remove()
    return result
