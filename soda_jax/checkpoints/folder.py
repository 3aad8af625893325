"""Where the checkpoints of a run lie: a folder of this machine, or gs://… through TensorStore."""

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path

from etils import epath

from soda_jax.errors import UserError

DEFAULT = "checkpoints"  # in the workdir
RUN_CONFIG = "config.json"
# Orbax asks the bucket about itself with the second.
_GCS_MODULES = ("gcsfs", "google.cloud.storage")


def of_run(workdir: str | PathLike[str], directory: str | None = None) -> str:
    """The checkpoint folder of a run.

    Args:
      workdir: of the run; a URL stands for a folder with `checkpoints` in it.
      directory: `config.checkpoint.directory`: a path in the workdir, an absolute one, or gs://….
        None to take it from the config that the run has left in its workdir.

    Raises:
      UserError: if that config cannot be read.
    """
    if directory is None:
        directory = DEFAULT if is_url(workdir) else _saved_directory(Path(workdir) / RUN_CONFIG)
    if is_url(directory):
        return directory
    if is_url(workdir):
        return f"{fspath(workdir).rstrip('/')}/{directory}"
    return str(Path(workdir) / directory)


def local_workdir(workdir: str | PathLike[str]) -> Path:
    """The workdir as a path; a URL is refused with the way to have the checkpoints there."""
    if is_url(workdir):
        url = fspath(workdir).rstrip("/")
        raise UserError(
            f"{url}: a workdir holds the log, the tokenizer and the codec and is a local folder; to keep "
            "the checkpoints of a run on a bucket name one and add "
            f"--config.checkpoint.directory={url}/{DEFAULT} when it is trained"
        )
    return Path(workdir)


def opened(directory: str | PathLike[str]) -> epath.Path:
    """The folder as an absolute path or a gs:// URL; UserError where it can be neither."""
    path = epath.Path(directory) if fspath(directory).startswith("gs://") else None
    if path is None:
        if is_url(directory):
            raise UserError(f"{directory}: checkpoints go to a local folder or to gs://…; name one")
        return epath.Path(directory).absolute()
    for module in _GCS_MODULES:
        if not _importable(module):
            raise UserError(f"{directory} needs {module}: pip install 'soda-jax[gcs]'")
    return path


def is_url(location: str | PathLike[str]) -> bool:
    """Whether a location is a URL and not a path of this machine."""
    return "://" in fspath(location)


@contextlib.contextmanager
def reaching(directory: epath.Path) -> Iterator[None]:
    """Turns the errors of a store, which have classes of their own, into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_url(directory):
            raise
        reason = " ".join(str(error).split())[:240] or type(error).__name__
        raise UserError(
            f"{directory}: cannot be reached ({reason}); see that the bucket exists and this host "
            "may read and write it"
        ) from None


def _saved_directory(config: Path) -> str:
    try:
        value = json.loads(config.read_text(encoding="utf-8"))
        return str(value["checkpoint"].get("directory", DEFAULT))
    except FileNotFoundError:  # a folder with checkpoints alone
        return DEFAULT
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{config}: not the config of a run ({error}); restore it") from None


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
