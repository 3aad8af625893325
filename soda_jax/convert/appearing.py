"""Folders that appear when they are whole and on the disk, or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from soda_jax.checkpoints.folder import is_url
from soda_jax.errors import UserError
from soda_jax.files import sync, to_disk


def check_new(out: str | os.PathLike[str]) -> Path:
    """The path of a folder that can be made; UserError unless it is absent or empty, and local."""
    if is_url(out):
        raise UserError(
            f"{out}: a conversion writes a local folder; name one, and copy it from there"
        )
    path = Path(out)
    try:
        if path.is_symlink():
            raise UserError(f"{path} is a link; name the folder itself")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists and is not an empty folder; name a new one")
        if path.exists() and os.path.ismount(path):
            raise UserError(f"{path} is where a disk is mounted; name a new folder in it")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be a folder ({error.strerror}); name another one"
        ) from None
    return path


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out`, renamed to it at the end of the block and gone with all it holds if that fails.

    Raises:
      UserError: for what the file system refuses.
    """
    made = [folder for folder in out.absolute().parents if not folder.exists()]
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was killed
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
        mend = "free some space" if full else "name a folder that you may write"
        raise UserError(f"{out}: cannot be written ({error}); {mend}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made if not done else ():
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()
