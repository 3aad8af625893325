"""Initial state of a run: its newest checkpoint, another run's parameters, or random parameters.

Checkpoints of `soda convert from-hf` have parameters but no optimizer state. A run can start from
the parameters of such a checkpoint, but it cannot resume from it.
"""

import abc
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.checkpoints import Checkpointer, CheckpointReader, folder
from soda_jax.data.dataset import Dataset
from soda_jax.errors import UserError
from soda_jax.files import is_url
from soda_jax.schema import MODEL_SHAPE, ROPE_SHAPE, ModelConfig, RunConfig, to_dict
from soda_jax.train.front_end import check_front_end
from soda_jax.train.program import Program
from soda_jax.train.state import State

_ROPE_UNSCALED = ROPE_SHAPE[:2]


class Start(abc.ABC):
    """The initial state of a run.

    Attributes:
      step: optimizer steps done.
      windows: windows consumed.
      generations: generation of the data set to read, by source name.
      earlier: metadata of an earlier checkpoint, of which new checkpoints copy some entries; see
        `run_files.run_metadata`.
    """

    step: int = 0
    windows: int = 0
    generations: Mapping[str, int] = types.MappingProxyType({})
    earlier: Mapping[str, Any] | None = None

    @abc.abstractmethod
    def check_data(self, dataset: Dataset, allow_change: bool) -> None:
        """Raises UserError if the run cannot continue on `dataset`."""

    @abc.abstractmethod
    def state(self, program: Program, checkpointer: Checkpointer) -> State:
        """Returns the training state on the devices of `program`."""


class FreshStart(Start):
    """Random parameters, initialized from the seed of the config."""

    def check_data(self, dataset: Dataset, allow_change: bool) -> None:
        """Accepts any data."""

    def state(self, program: Program, checkpointer: Checkpointer) -> State:
        """Returns a new state."""
        return program.init()


class Resume(Start):
    """The newest valid checkpoint of the run itself."""

    def __init__(self, step: int, metadata: Mapping[str, Any], directory: os.PathLike[str]):
        """Stores the step and its metadata; `directory` is the folder of the checkpoints."""
        self.step, self._directory = step, directory
        self._metadata = self.earlier = metadata
        self.windows = int(self._metadata["windows"])
        sources = self._metadata["data"]["sources"]
        self.generations = {name: source["generation"] for name, source in sources.items()}

    def check_data(self, dataset: Dataset, allow_change: bool) -> None:
        """Raises UserError if the front end or, without `allow_change`, the data digest differs."""
        check_front_end(dataset, self._metadata, self._directory)
        expected = self._metadata["data_digest"]
        if not allow_change and dataset.digest != expected:
            raise UserError(
                f"the data differs from that of the checkpoint (digest {dataset.digest[:12]}, expected "
                f"{expected[:12]}: sources, weights, views, seed or sequence length); restore these "
                "settings, use another --workdir, or pass --allow_data_change"
            )

    def state(self, program: Program, checkpointer: Checkpointer) -> State:
        """Restores the checkpoint."""
        state, _, _ = checkpointer.restore(program.abstract, self.step)
        print(f"resumed from step {self.step}", file=sys.stderr)
        return state


class WarmStart(Start):
    """The parameters of another run's checkpoint, with a new optimizer state at step 0."""

    def __init__(self, path: str, reader: CheckpointReader, step: int, metadata: Mapping[str, Any]):
        """Stores the checkpoint of the other run.

        Args:
          path: value of `config.start_from`.
          reader: reader of the other run's checkpoints.
          step: step of the checkpoint.
          metadata: metadata of the checkpoint.
        """
        self.path, self.source_step, self._reader = path, step, reader
        self._metadata = metadata
        self.earlier = {
            "codec_fingerprint": self._metadata["codec_fingerprint"],
            "front_end": self._metadata.get("front_end", {}),
            "started_from": {
                "path": path,
                "step": step,
                "data_digest": self._metadata.get("data_digest"),
            },
        }

    def check_model(self, model: ModelConfig) -> None:
        """Raises UserError unless the checkpoint has the shape and RoPE settings of `model`."""
        path = self._reader.path(self.source_step)
        _check_model(to_dict(model), self._metadata["config"]["model"], path)

    def check_data(self, dataset: Dataset, allow_change: bool) -> None:
        """Raises UserError if the front end differs."""
        otherwise = "start from another checkpoint"
        check_front_end(dataset, self._metadata, self._reader.directory, otherwise)

    def state(self, program: Program, checkpointer: Checkpointer) -> State:
        """Restores the parameters and initializes the optimizer state."""
        params, _, _ = self._reader.restore_params(program.abstract["params"], self.source_step)
        print(f"started from step {self.source_step} of {self.path}", file=sys.stderr)
        return program.begin(params)


def find_start(config: RunConfig, workdir: Path, reader: CheckpointReader) -> Start:
    """Returns the initial state of a run; all processes must call this function.

    Args:
      config: settings of the run.
      workdir: workdir of the run.
      reader: reader of the run's checkpoints.

    Raises:
      UserError: if checkpoints exist but none is valid, the chosen one has no optimizer state,
        `start_from` has no valid checkpoint or another model shape, or `workdir` or `start_from` is
        a Hugging Face export.
    """
    if reader.steps():
        step = reader.choose().step
        metadata = reader.metadata(step)
        _check_resumable(reader, step, metadata)
        return Resume(step, metadata, reader.directory)
    _refuse_export(workdir, f"--workdir={workdir}", "--config.start_from=WORKDIR --workdir=ANOTHER")
    if not config.start_from:
        return FreshStart()
    path, step = config.start_from, config.start_from_step
    if not is_url(path):
        _refuse_export(Path(path), f"start_from={path}", "--config.start_from=WORKDIR")
    other = _open_reader(path)
    report = other.choose(None if step < 0 else step, params_only=True)
    start = WarmStart(path, other, report.step, other.metadata(report.step))
    start.check_model(config.model)
    return start


def _check_resumable(reader: CheckpointReader, step: int, metadata: Mapping[str, Any]) -> None:
    """Raises UserError if the checkpoint has only parameters."""
    if reader.has_training(step):
        return
    path = reader.directory
    workdir = path.parent if path.name == folder.DEFAULT else path
    reason = "it has only parameters"
    if "converted_from" in metadata:
        reason = f"it was converted from {metadata['converted_from']['name']}"
    raise UserError(
        f"{reader.path(step)} has no optimizer state ({reason}) and cannot be resumed; to start a run "
        f"from its parameters pass --config.start_from={workdir} and another --workdir"
    )


def _refuse_export(path: Path, given: str, option: str) -> None:
    if next(path.glob("*.safetensors*"), None) is not None:
        raise UserError(
            f"{given}: an export for Hugging Face is not a checkpoint and has no optimizer state; "
            f"run soda convert from-hf {path} WORKDIR, then train with {option}"
        )


def _open_reader(path: str) -> CheckpointReader:
    """Opens the checkpoints in the workdir `path`, or in `path` itself if it has step folders."""
    reader = CheckpointReader(folder.of_run(path))
    if reader.steps():
        return reader
    itself = CheckpointReader(path)
    if itself.steps():
        return itself
    raise UserError(
        f"start_from={path}: no checkpoints in {reader.directory} or in the folder itself; pass the "
        "workdir of a run or of soda convert from-hf"
    )


def _check_model(model: Mapping[str, Any], theirs: Mapping[str, Any], checkpoint: Any) -> None:
    scaled = not model["rope"]["factor"] == theirs["rope"]["factor"] == 1.0
    mine, other = _fields(model, scaled), _fields(theirs, scaled)
    differences = [name for name in mine if mine[name] != other[name]]
    if differences:
        mismatch = "; ".join(
            f"model.{name} is {mine[name]} in the config and {other[name]} in {checkpoint}"
            for name in differences
        )
        fix = " ".join(f"--config.model.{name}={other[name]}" for name in differences)
        raise UserError(f"{mismatch}; pass {fix}")


def _fields(model: Mapping[str, Any], scaled: bool) -> dict[str, Any]:
    """Returns the settings that the config and the checkpoint must share, by dotted name."""
    rope = {
        f"rope.{name}": model["rope"][name] for name in (ROPE_SHAPE if scaled else _ROPE_UNSCALED)
    }
    return {name: model[name] for name in MODEL_SHAPE} | rope
