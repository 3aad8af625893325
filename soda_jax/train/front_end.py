"""Checks the front end (tokenizer, codec, layout) of a run and copies it into the workdir."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soda_jax.data.dataset import Dataset
from soda_jax.data.storage.locations import Location, join
from soda_jax.data.storage.remote import download_folder
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, differences
from soda_jax.files import is_url, link_or_copy
from soda_jax.tokens.front_end import FrontEnd


def check_front_end(
    dataset: Dataset,
    metadata: Mapping[str, Any],
    checkpoint: str | os.PathLike[str],
    otherwise: str = "use another --workdir",
) -> None:
    """Raises UserError if the data and a checkpoint assign different meanings to token ids.

    No option disables this check, because without it a run would train on noise and report no
    error. A text model may be trained further on speech, and a speech model on text, so a missing
    codec is not an error.

    Args:
      dataset: the data of the run.
      metadata: metadata of the checkpoint.
      checkpoint: name of the checkpoint, for the error message.
      otherwise: alternative fix, appended to the error message.

    Raises:
      UserError: the message names the data, both fingerprints and the fix.
    """
    trained = FrontEnd.from_metadata(metadata)
    paths = {
        dataset.config.sources[source.name].path
        for source in dataset.sources
        if source.manifest.front_end.differences(trained)
    }
    name = ", ".join(sorted(paths))
    dataset.front_end.check_same(
        trained, name, str(checkpoint), otherwise=otherwise, repair=min(paths, default="")
    )


def front_end_sums(
    dataset: Dataset, earlier: Mapping[str, Any] | None
) -> dict[str, tuple[int, str]]:
    """Returns the size and crc32c of the tokenizer and codec files that a run stores.

    They are read from the manifests of the data. If no manifest lists files of the tokenizer or the
    codec, they are read from `earlier`, the metadata of the checkpoint that the run resumed or
    started from.
    """
    before = (earlier or {}).get("front_end", {})
    speech = [s.manifest.front_end_files for s in dataset.sources if s.manifest.codec]
    text = [s.manifest.front_end_files for s in dataset.sources if not s.manifest.codec]
    # A text data set may contain a codec other than the one that the model was trained with.
    known = {"tokenizer": [*speech, *text, before], "codec": [*speech, before, *text]}
    sums: dict[str, tuple[int, str]] = {}
    for folder in FRONT_END:
        parts = (_entries_of(each, folder) for each in known[folder])
        sums |= next((part for part in parts if part), {})
    return sums


def copy_front_end(
    folders: Sequence[Location], workdir: Path, sums: Mapping[str, tuple[int, str]]
) -> None:
    """Copies the tokenizer and codec into the workdir, so that the data sets are not needed later.

    An existing copy is compared with `sums` and replaced if it is damaged.

    Args:
      folders: paths or URLs of the data sets and runs to copy from, tried in this order.
      workdir: workdir of the run.
      sums: size and crc32c of every file, see `front_end_sums`.

    Raises:
      UserError: if every copy of the tokenizer or codec folder is damaged, or a copy exists but no
        manifest or checkpoint lists its files.
    """
    for name in FRONT_END:
        if not _entries_of(sums, name):
            _check_listed(folders, name)
            continue
        target = workdir / name
        mismatch = next(differences(workdir, sums, name), None) if target.is_dir() else None
        if target.is_dir() and mismatch is None:
            continue
        damage = [] if mismatch is None else [f"{workdir / mismatch[0]} {mismatch[1]}"]
        with tempfile.TemporaryDirectory(dir=workdir, prefix=f".{name}.") as temporary:
            for folder in folders:
                if not _fetch(join(folder, name), Path(temporary, name)):
                    continue
                wrong = next(differences(temporary, sums, name), None)
                if wrong is None:
                    if mismatch is not None:
                        print(f"{damage[0]}; replaced with the copy in {folder}", file=sys.stderr)
                    shutil.rmtree(target, ignore_errors=True)
                    Path(temporary, name).rename(target)
                    break
                damage.append(f"{join(folder, wrong[0])} {wrong[1]}")
                shutil.rmtree(Path(temporary, name))
            else:
                if damage:
                    raise UserError(f"{damage[-1]}; restore it from a backup and start again")


def _check_listed(folders: Sequence[Location], name: str) -> None:
    for folder in folders:
        if not is_url(folder) and os.path.isdir(join(folder, name)):
            raise UserError(
                f"{join(folder, name)} cannot be checked: no manifest or checkpoint lists its files; "
                "tokenize or convert the data again, or remove the folder"
            )


def _fetch(origin: Location, target: Path) -> bool:
    """Copies a folder; returns False if it does not exist."""
    if is_url(origin):
        return download_folder(origin, target)
    if not os.path.isdir(origin):
        return False
    shutil.copytree(origin, target, copy_function=link_or_copy)
    return True


def _entries_of(sums: Mapping[str, Any], folder: str) -> dict[str, tuple[int, str]]:
    """Returns the entries of one folder, with JSON lists converted back to tuples."""
    return {
        name: (total[0], total[1]) for name, total in sums.items() if name.startswith(f"{folder}/")
    }
