"""Repair of a run whose tokenizer, codec or fingerprints were damaged.

A run that was trained while a bit of its data set's manifest was wrong has stored the wrong fingerprint in
every checkpoint, and no data set agrees with it any more. An intact data set has the right one.
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
    """Gives a run the tokenizer, the codec and the fingerprints of an intact data set.

    Args:
      workdir: workdir of the run; no other process may write to it.
      data: folder of a data set that the run was trained on.

    Returns:
      What was changed, in lines.

    Raises:
      UserError: if the data set is damaged or is one that the run was not trained on, and nothing is
        changed; or if a checkpoint is damaged, and the ones before it are repaired.
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
        changes[step] = {**metadata, **_right(metadata, manifest)}
    if not changes:
        raise UserError(f"no checkpoints in {reader.directory}; is {workdir} a run's workdir?")
    done = []
    for step, metadata in changes.items():
        if metadata != reader.metadata(step):
            digest.replace_file(
                reader.path(step), f"{METADATA}/{METADATA}", json.dumps(metadata).encode()
            )
            done.append(f"checkpoint {step}: fingerprints of {data}")
    copy_front_end([data], workdir, _sums(manifest))
    return done


def _sums(manifest: Manifest) -> FileSums:
    """The files of tokenizer and codec; a text data set may have a codec that is not the run's."""
    folders = FRONT_END if manifest.codec else FRONT_END[:1]
    return {
        name: x for name, x in manifest.front_end_files.items() if name.split("/")[0] in folders
    }


def _right(metadata: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """The entries of a checkpoint's metadata that come from the manifest."""
    found: dict[str, Any] = {"tokenizer_fingerprint": manifest.tokenizer_fingerprint}
    if manifest.codec:
        found["codec_fingerprint"] = manifest.codec["fingerprint"]
    sums = {name: list(total) for name, total in _sums(manifest).items()}
    return {**found, "front_end": {**metadata.get("front_end", {}), **sums}}


def _check_same_front_end(
    metadata: Mapping[str, Any], manifest: Manifest, step: Any, data: str
) -> None:
    """UserError unless the fingerprints are equal except for one or two damaged characters."""
    for difference in FrontEnd.from_metadata(metadata).differences(manifest.front_end):
        if not difference.looks_damaged:
            raise UserError(
                f"{step} has the {difference.part} {difference.ours}, {data} has {difference.theirs}: "
                "too different for a damaged one; give --repair a data set that this run was trained on"
            )
