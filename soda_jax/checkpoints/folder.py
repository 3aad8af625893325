"""The checkpoint folder of a run: a local folder, or gs://… through TensorStore."""

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path

from etils import epath

from soda_jax.errors import UserError
from soda_jax.files import is_url

DEFAULT = "checkpoints"  # in the workdir
RUN_CONFIG = "config.json"
# Modules that Orbax needs for gs:// URLs; it reads bucket properties with google.cloud.storage.
_GCS_MODULES = ("gcsfs", "google.cloud.storage")


def of_run(workdir: str | PathLike[str], directory: str | None = None) -> str:
    """Returns the checkpoint folder of a run.

    Args:
      workdir: workdir of the run, or the URL of a folder that contains `checkpoints`.
      directory: value of `config.checkpoint.directory`, which is a path in the workdir, an absolute
        path, or gs://…. If None, the value is read from config.json in the workdir; it is
        `checkpoints` if there is no such file or the workdir is a URL.

    Raises:
      UserError: if config.json is needed and invalid.
    """
    if directory is None:
        directory = DEFAULT if is_url(workdir) else _saved_directory(Path(workdir) / RUN_CONFIG)
    if is_url(directory):
        return directory
    if is_url(workdir):
        return f"{fspath(workdir).rstrip('/')}/{directory}"
    return str(Path(workdir) / directory)


def local_workdir(workdir: str | PathLike[str]) -> Path:
    """Returns the workdir as a path; raises UserError for a URL."""
    if is_url(workdir):
        url = fspath(workdir).rstrip("/")
        raise UserError(
            f"{url}: the workdir (logs, tokenizer, codec) must be a local folder; pass a local "
            "folder, and store the checkpoints in the bucket with "
            f"--config.checkpoint.directory={url}/{DEFAULT}"
        )
    return Path(workdir)


def opened(directory: str | PathLike[str]) -> epath.Path:
    """Returns the folder as an absolute path or gs:// URL; raises UserError for other URLs."""
    path = epath.Path(directory) if fspath(directory).startswith("gs://") else None
    if path is None:
        if is_url(directory):
            raise UserError(
                f"{directory}: checkpoints need a local folder or a gs:// URL; pass one of these"
            )
        return epath.Path(directory).absolute()
    for module in _GCS_MODULES:
        if not _importable(module):
            raise UserError(f"{directory} needs {module}: pip install 'soda-jax[gcs]'")
    return path


@contextlib.contextmanager
def reaching(directory: epath.Path) -> Iterator[None]:
    """Converts exceptions for a remote `directory` into a UserError that names the folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_url(directory):
            raise
        reason = " ".join(str(error).split())[:240] or type(error).__name__
        raise UserError(
            f"{directory}: cannot be reached ({reason}); check that the bucket exists and that this host "
            "may read and write it"
        ) from None


def _saved_directory(config: Path) -> str:
    try:
        value = json.loads(config.read_text(encoding="utf-8"))
        return str(value["checkpoint"].get("directory", DEFAULT))
    except FileNotFoundError:  # a folder that contains only checkpoints
        return DEFAULT
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{config}: invalid run config ({error}); restore the file") from None


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
