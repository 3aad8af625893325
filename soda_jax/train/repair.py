"""Repairs a run whose tokenizer, codec or fingerprints were damaged.

If the manifest of the data set had a flipped bit during training, all checkpoints of the run
contain the wrong fingerprint and match no data set. `repair` copies the correct fingerprint from an
intact data set.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.checkpoints import CheckpointReader, digest, folder
from soda_jax.checkpoints.restore import METADATA
from soda_jax.data.format.manifest import Manifest
from soda_jax.data.storage.locations import refuse_url
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, FileSums, check_folder
from soda_jax.tokens.front_end import FrontEnd
from soda_jax.train.front_end import copy_front_end


def repair(workdir: Path, data: str) -> list[str]:
    """Replaces the tokenizer, codec and fingerprints of a run with those of an intact data set.

    Args:
      workdir: workdir of the run; no other process may write to it.
      data: local folder of a data set that the run was trained on.

    Returns:
      One line for each changed checkpoint.

    Raises:
      UserError: if the data set is damaged, the run was not trained on it or has no checkpoints (in
        these cases nothing is changed), or if a checkpoint is damaged (the checkpoints of earlier
        steps have been repaired by then).
    """
    refuse_url(data, "--repair reads")
    manifest = Manifest.load(data)
    for name in FRONT_END:
        check_folder(data, manifest.front_end_files, name)
    reader = CheckpointReader(folder.of_run(workdir))
    changes: dict[int, dict[str, Any]] = {}
    for step in reader.steps():
        metadata = reader.metadata(step)
        _check_same_front_end(metadata, manifest, reader.path(step), data)
        changes[step] = {**metadata, **_manifest_entries(metadata, manifest)}
    if not changes:
        raise UserError(f"no checkpoints in {reader.directory}; is {workdir} a run's workdir?")
    done = []
    for step, metadata in changes.items():
        if metadata != reader.metadata(step):
            digest.replace_file(
                reader.path(step), f"{METADATA}/{METADATA}", json.dumps(metadata).encode()
            )
            done.append(f"checkpoint {step}: fingerprints replaced by those of {data}")
    copy_front_end([data], workdir, _sums(manifest))
    return done


def _sums(manifest: Manifest) -> FileSums:
    """Returns the tokenizer files, and the codec files unless the data set contains only text."""
    folders = FRONT_END if manifest.codec else FRONT_END[:1]
    return {
        name: x for name, x in manifest.front_end_files.items() if name.split("/")[0] in folders
    }


def _manifest_entries(metadata: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Returns the metadata entries of a checkpoint that are copied from the manifest."""
    found: dict[str, Any] = {"tokenizer_fingerprint": manifest.tokenizer_fingerprint}
    if manifest.codec:
        found["codec_fingerprint"] = manifest.codec["fingerprint"]
    sums = {name: list(total) for name, total in _sums(manifest).items()}
    return {**found, "front_end": {**metadata.get("front_end", {}), **sums}}


def _check_same_front_end(
    metadata: Mapping[str, Any], manifest: Manifest, step: Any, data: str
) -> None:
    """Raises UserError unless all differences look like damage, see `Difference.looks_damaged`."""
    for difference in FrontEnd.from_metadata(metadata).differences(manifest.front_end):
        if not difference.looks_damaged:
            raise UserError(
                f"{step} has the {difference.part} {difference.ours}, {data} has {difference.theirs}: "
                "not a flipped bit; set --repair to a data set that this run was trained on"
            )
