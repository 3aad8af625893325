"""Creates output folders that appear only when they are complete and synced to disk."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from soda_jax.errors import UserError
from soda_jax.files import is_url, sync, to_disk


def check_new(out: str | os.PathLike[str]) -> Path:
    """Returns `out` as a path; raises UserError unless it is a new or empty local folder."""
    if is_url(out):
        raise UserError(f"{out} is a URL; give a local folder, and copy it to the URL afterwards")
    path = Path(out)
    try:
        if path.is_symlink():
            raise UserError(f"{path} is a link; give the path of the folder itself")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists and is not an empty folder; give a new path")
        if os.path.ismount(path):
            raise UserError(f"{path} is a mount point; give a new folder in it")
    except OSError as error:
        raise UserError(
            f"{path} cannot be used as the output folder ({error.strerror}); give another path"
        ) from None
    return path


@contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `out` at the end, or removed after an error.

    Raises:
      UserError: if the folder cannot be written.
    """
    made = [folder for folder in out.absolute().parents if not folder.exists()]
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a conversion that was killed
    done = False
    try:
        partial.mkdir(parents=True)
        yield partial
        to_disk(partial)
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
        done = True
        sync(out.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space" if full else "give a folder with write permission"
        raise UserError(f"{out}: cannot be written ({error}); {fix}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made if not done else ():
            with suppress(OSError):  # not empty: another process has written into it
                folder.rmdir()
