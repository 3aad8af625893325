"""Loads the decoder of a run's checkpoint, without tokenizer and codec."""

import dataclasses
from pathlib import Path
from typing import Any

from soda_jax.model import ModelFunctions, decoder_from_metadata
from soda_jax.tokens import VocabularyLayout


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedDecoder:
    """A decoder with its parameters on the first local device.

    Attributes:
      step: training step of the checkpoint.
      metadata: metadata of the checkpoint; see `soda_jax.train.run_files.run_metadata`.
      layout: the vocabulary layout.
      model: the decoder as pure functions.
      params: parameters of `model`.
    """

    step: int
    metadata: dict[str, Any]
    layout: VocabularyLayout
    model: ModelFunctions
    params: Any


def load_decoder(workdir: str | Path, step: int | None = None) -> TrainedDecoder:
    """Loads the newest valid checkpoint of a run, or the checkpoint at `step`.

    Raises:
      UserError: if there is no valid checkpoint, or its parameters do not match its config.
    """
    import jax

    from soda_jax.checkpoints import CheckpointReader, folder

    reader = CheckpointReader(folder.of_run(folder.local_workdir(workdir)))
    report = reader.choose(step, params_only=True)
    metadata = reader.metadata(report.step)
    layout = VocabularyLayout.from_json(metadata["layout"])
    model = ModelFunctions(decoder_from_metadata(metadata, layout))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), model.abstract
    )
    params, _, _ = reader.restore_params(abstract, report.step)
    return TrainedDecoder(report.step, metadata, layout, model, params)
