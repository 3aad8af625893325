"""Tokenizer, codec and layout of the data: those of the checkpoint, and copied beside the model."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.data.dataset import Dataset
from soda_jax.data.storage.locations import is_url, join
from soda_jax.data.storage.remote import download_folder
from soda_jax.errors import UserError
from soda_jax.files import link_or_copy


def check_front_end(
    dataset: Dataset,
    metadata: Mapping[str, Any],
    checkpoint: str | os.PathLike[str],
    otherwise: str = "use another --workdir",
) -> None:
    """Refuses data whose ids mean something else than those that the checkpoint has learned.

    No option lets it pass: the run would go on without an error and train on noise. The layout comes
    last, because another tokenizer or codec mostly changes it too and is the fault to mend.

    Args:
      dataset: what the run would read.
      metadata: of the checkpoint.
      checkpoint: what to call it in a message.
      otherwise: what to do there if not mend the data.
    """
    ids = [
        (
            "tokenizer",
            "tokenizer_fingerprint",
            dataset.tokenizer_fingerprint,
            "bring the data over with soda retext",
        ),
        (
            "codec",
            "codec_fingerprint",
            dataset.codec_fingerprint,
            "tokenize the data again with that codec",
        ),
        (
            "vocabulary layout",
            "layout_fingerprint",
            dataset.layout.fingerprint,
            "tokenize the data again with tokenizer and codec of the checkpoint",
        ),
    ]
    for what, key, found, mend in ids:
        wanted = metadata[key]
        # Text alone has no codec: a model of text may go on to speech, and one of speech to text.
        if found == wanted or (key == "codec_fingerprint" and None in (found, wanted)):
            continue
        paths = {
            str(dataset.config["sources"][source.name]["path"])
            for source in dataset.sources
            if source.manifest.codec or key != "codec_fingerprint"
        }
        raise UserError(
            f"{', '.join(sorted(paths))}: the {what} has fingerprint {found}, {checkpoint} was "
            f"trained with {wanted}; {mend}, or {otherwise}"
        )


def copy_front_end(dataset: Dataset, workdir: Path, start_from: str = "") -> None:
    """Copies tokenizer and codec beside the model, so that the folder speaks for itself.

    They come from the data; what the data lacks (text has no codec) from the local workdir `start_from`.
    """
    folders = [source["path"] for source in dataset.config["sources"].values()]
    if start_from and not is_url(start_from):
        folders.append(start_from)
    for folder in folders:
        for name in ("tokenizer", "codec"):
            origin, target = join(folder, name), workdir / name
            if target.is_dir():
                continue
            partial = workdir / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            if is_url(origin):
                if not download_folder(origin, partial):
                    continue
            elif os.path.isdir(origin):
                shutil.copytree(origin, partial, copy_function=link_or_copy)
            else:
                continue
            partial.rename(target)
