"""Loads the decoder of a run's checkpoint, without tokenizer and codec."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.model import ModelFunctions, decoder_from_metadata
from soda_jax.model.placement import ONE_DEVICE, Placement
from soda_jax.tokens import VocabularyLayout


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedDecoder:
    """A decoder with its parameters on the first local device, or on a mesh.

    Attributes:
      step: training step of the checkpoint.
      metadata: metadata of the checkpoint; see `soda_jax.train.run_files.run_metadata`.
      layout: the vocabulary layout.
      model: the decoder as pure functions.
      params: parameters of `model`.
      placement: the mesh of `params`.
      digest: SHA-256 of the digest file of the checkpoint; empty if it has none.
    """

    step: int
    metadata: dict[str, Any]
    layout: VocabularyLayout
    model: ModelFunctions
    params: Any
    placement: Placement = ONE_DEVICE
    digest: str = ""


def load_decoder(
    workdir: str | Path, step: int | None = None, mesh: Mapping[str, int] | None = None
) -> TrainedDecoder:
    """Loads the newest valid checkpoint of a run, or the checkpoint at `step`.

    Args:
      workdir: the run's folder.
      step: step of the checkpoint; the newest valid one by default.
      mesh: size of each mesh axis, −1 for all remaining devices; by default one device.

    Raises:
      UserError: if there is no valid checkpoint, its parameters do not match its config, or the mesh
        does not fit the devices.
    """
    import jax

    from soda_jax.checkpoints import CheckpointReader, digest, folder
    from soda_jax.parallel import rules
    from soda_jax.parallel.mesh import make_mesh
    from soda_jax.parallel.placement import OnMesh

    reader = CheckpointReader(folder.of_run(folder.local_workdir(workdir)))
    report = reader.choose(step, params_only=True)
    metadata = reader.metadata(report.step)
    layout = VocabularyLayout.from_json(metadata["layout"])
    model = ModelFunctions(decoder_from_metadata(metadata, layout))
    made = make_mesh(mesh) if mesh else make_mesh({}, jax.local_devices()[:1])
    abstract = jax.tree.map(
        lambda leaf, axes: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=rules.sharding(made, axes, leaf.shape)
        ),
        model.abstract,
        model.axes,
    )
    params, _, _ = reader.restore_params(abstract, report.step)
    identity = digest.identity(reader.path(report.step))
    return TrainedDecoder(report.step, metadata, layout, model, params, OnMesh(made), identity)
