"""The front end of a run: compared with the data, and copied into the workdir."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soda_jax.data.dataset import Dataset
from soda_jax.data.storage.locations import Location, is_url, join
from soda_jax.data.storage.remote import download_folder
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, differences
from soda_jax.files import link_or_copy
from soda_jax.tokens.front_end import FrontEnd


def check_front_end(
    dataset: Dataset,
    metadata: Mapping[str, Any],
    checkpoint: str | os.PathLike[str],
    otherwise: str = "use another --workdir",
) -> None:
    """Refuses data whose token ids have another meaning than the ids of a checkpoint.

    No option skips this check: the run would continue without an error and train on noise. A text model
    may continue on speech and a speech model on text: a missing codec is accepted.

    Args:
      dataset: the data of the run.
      metadata: of the checkpoint.
      checkpoint: its name in the message.
      otherwise: an alternative to converting the data, for the message.

    Raises:
      UserError: naming the data, both fingerprints and the fix.
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
    """Size and crc32c of the files of tokenizer and codec that a run keeps.

    They are those of its data; for a folder that the data lacks, those of `earlier`, the metadata of the
    checkpoint that was resumed or started from.
    """
    before = (earlier or {}).get("front_end", {})
    speech = [s.manifest.front_end_files for s in dataset.sources if s.manifest.codec]
    text = [s.manifest.front_end_files for s in dataset.sources if not s.manifest.codec]
    # Text may have been tokenized next to another codec than the one that the model has learned.
    known = {"tokenizer": [*speech, *text, before], "codec": [*speech, before, *text]}
    sums: dict[str, tuple[int, str]] = {}
    for folder in FRONT_END:
        parts = (_part(each, folder) for each in known[folder])
        sums |= next((part for part in parts if part), {})
    return sums


def copy_front_end(
    folders: Sequence[Location], workdir: Path, sums: Mapping[str, tuple[int, str]]
) -> None:
    """Copies tokenizer and codec into the run's folder, so that it is complete without its data.

    A copy that is there already is compared with `sums`, and replaced if it is damaged.

    Args:
      folders: data sets and runs that may have them, paths or URLs.
      workdir: of the run.
      sums: see `front_end_sums`.

    Raises:
      UserError: if every copy of a file is damaged; nothing is copied then.
    """
    for name in FRONT_END:
        if not _part(sums, name):
            _refuse_unlisted(folders, name)
            continue
        target = workdir / name
        mine = next(differences(workdir, sums, name), None) if target.is_dir() else None
        if target.is_dir() and mine is None:
            continue
        damage = [] if mine is None else [f"{workdir / mine[0]} {mine[1]}"]
        with tempfile.TemporaryDirectory(dir=workdir, prefix=f".{name}.") as temporary:
            for folder in folders:
                if not _fetch(join(folder, name), Path(temporary, name)):
                    continue
                wrong = next(differences(temporary, sums, name), None)
                if wrong is None:
                    if mine is not None:
                        print(f"{damage[0]}; replaced by that of {folder}", file=sys.stderr)
                    shutil.rmtree(target, ignore_errors=True)
                    Path(temporary, name).rename(target)
                    break
                damage.append(f"{join(folder, wrong[0])} {wrong[1]}")
                shutil.rmtree(Path(temporary, name))
            else:
                if damage:
                    raise UserError(f"{damage[-1]}; restore it from a backup and start again")


def _refuse_unlisted(folders: Sequence[Location], name: str) -> None:
    for folder in folders:
        if not is_url(folder) and os.path.isdir(join(folder, name)):
            raise UserError(
                f"{join(folder, name)} cannot be checked: no manifest or checkpoint lists its files; "
                "tokenize or convert again with it, or remove it"
            )


def _fetch(origin: Location, target: Path) -> bool:
    """Copies a folder; False if there is none."""
    if is_url(origin):
        return download_folder(origin, target)
    if not os.path.isdir(origin):
        return False
    shutil.copytree(origin, target, copy_function=link_or_copy)
    return True


def _part(sums: Mapping[str, Any], folder: str) -> dict[str, tuple[int, str]]:
    """The entries of one folder; what JSON has made lists become tuples again."""
    return {
        name: (total[0], total[1]) for name, total in sums.items() if name.startswith(f"{folder}/")
    }
