"""Where a run begins: from the parameters of another one (`start_from`), or not at all.

Checkpoints of `soda convert from-hf` have parameters and no optimizer state: a run starts from them, it
does not go on from them.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.checkpoints import CheckpointReader, folder
from soda_jax.data.dataset import Dataset
from soda_jax.errors import UserError
from soda_jax.train.front_end import check_front_end
from soda_jax.train.run import Program
from soda_jax.train.state import State

# What decides the shapes and the meaning of the parameters; the rest of `model` is how it is computed.
_SHAPE = (
    "layers", "width", "mlp_width", "heads", "kv_heads", "head_dim", "tied", "norm_eps",
)  # fmt: skip
_ROPE = ("theta", "factor", "low", "high", "original_length")
_ROPE_UNSCALED = ("theta", "factor")


@dataclasses.dataclass(frozen=True)
class Start:
    """A checkpoint that gives a new run its parameters.

    Attributes:
      path: as the config names it.
      reader: of its folder.
      step: of the other run.
      metadata: what stands beside its arrays.
    """

    path: str
    reader: CheckpointReader
    step: int
    metadata: dict[str, Any]

    def check_data(self, dataset: Dataset) -> None:
        """Refuses data with another tokenizer, codec or layout, as a resumed run does."""
        otherwise = "start from another checkpoint"
        check_front_end(dataset, self.metadata, self.reader.directory, otherwise)

    def state(self, program: Program) -> State:
        """Its parameters on the devices of `program`, everything else fresh, at step 0."""
        params, _, _ = self.reader.restore_params(program.abstract["params"], self.step)
        print(f"started from step {self.step} of {self.path}", file=sys.stderr)
        return program.begin(params)

    def earlier(self) -> dict[str, Any]:
        """What the checkpoints of the new run keep of it, as `earlier` of `run_metadata`."""
        return {
            "codec_fingerprint": self.metadata["codec_fingerprint"],
            "front_end": self.metadata.get("front_end", {}),
            "started_from": {
                "path": self.path,
                "step": self.step,
                "data_digest": self.metadata.get("data_digest"),
            },
        }


def find_start(config: Any, workdir: Path) -> Start | None:
    """What a run that has no checkpoint yet starts from; None: from the seed.

    Every process calls it alike.

    Raises:
      UserError: if there is no valid checkpoint where `config.start_from` says, or its model is not
        that of the config, or if `workdir` is an export.
    """
    _refuse_export(workdir, f"--workdir={workdir}", "--config.start_from=WORKDIR --workdir=ANOTHER")
    if not config.start_from:
        return None
    path, step = str(config.start_from), int(config.start_from_step)
    if not folder.is_url(path):
        _refuse_export(Path(path), f"start_from={path}", "--config.start_from=WORKDIR")
    reader = _reader(path)
    report = reader.choose(None if step < 0 else step, params_only=True)
    metadata = reader.metadata(report.step)
    _check_model(config.model.to_dict(), metadata["config"]["model"], reader.path(report.step))
    return Start(path, reader, report.step, metadata)


def check_resumable(reader: CheckpointReader, step: int, metadata: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint that has parameters alone.

    Raises:
      UserError: that names the reason and the way to use it.
    """
    if reader.has_training(step):
        return
    path = reader.directory
    place = path.parent if path.name == folder.DEFAULT else path
    reason = "it was saved without"
    if "converted_from" in metadata:
        reason = f"it was converted from {metadata['converted_from']['name']}"
    raise UserError(
        f"{reader.path(step)} has no optimizer state ({reason}) and cannot be resumed; to begin a run "
        f"from its parameters give --config.start_from={place} and another --workdir"
    )


def _refuse_export(path: Path, given: str, option: str) -> None:
    if next(path.glob("*.safetensors*"), None) is not None:
        raise UserError(
            f"{given}: an export for Hugging Face has no optimizer state and cannot be resumed; "
            f"soda convert from-hf {path} WORKDIR, then train with {option}"
        )


def _reader(path: str) -> CheckpointReader:
    """Of the checkpoints of the workdir `path`, or of `path` itself where that is their folder."""
    reader = CheckpointReader(folder.of_run(path))
    if reader.steps():
        return reader
    itself = CheckpointReader(path)
    if itself.steps():
        return itself
    raise UserError(
        f"start_from={path}: no checkpoints in {reader.directory} or in the folder itself; name the "
        "workdir of a run or of soda convert from-hf"
    )


def _check_model(model: Mapping[str, Any], theirs: Mapping[str, Any], checkpoint: Any) -> None:
    scaled = not model["rope"]["factor"] == theirs["rope"]["factor"] == 1.0
    mine, other = _fields(model, scaled), _fields(theirs, scaled)
    differences = [name for name in mine if mine[name] != other[name]]
    if differences:
        told = "; ".join(
            f"model.{name} is {mine[name]} in the config and {other[name]} in {checkpoint}"
            for name in differences
        )
        mend = " ".join(f"--config.model.{name}={other[name]}" for name in differences)
        raise UserError(f"{told}; give {mend}")


def _fields(model: Mapping[str, Any], scaled: bool) -> dict[str, Any]:
    """What must agree, by dotted name; of rotary positions without scaling only what counts."""
    rope = {f"rope.{name}": model["rope"][name] for name in (_ROPE if scaled else _ROPE_UNSCALED)}
    return {name: model[name] for name in _SHAPE} | rope
