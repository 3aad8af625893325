"""A stand-in for an object store: files of a local folder, slow and failing as told.

`shaky://data/train/…` is `ROOT/data/train/…`. It has no rename, no folders of its own and no mercy.
"""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import fsspec


class ShakyFileSystem(fsspec.AbstractFileSystem):
    """Counts what it is asked for; the class attributes say how it fails."""

    protocol = "shaky"
    root = Path()
    seconds = 0.0  # each read takes so long
    failures = 0  # so many reads fail first …
    error: Exception = OSError("connection reset")  # … with this
    only = ""  # what does not have this in its name works
    short = 0  # so many reads end early
    flips = 0  # so many reads have a wrong bit
    asked: ClassVar[Counter[str]] = Counter()
    at_once = most_at_once = 0
    lock = threading.Lock()

    @classmethod
    def start(cls, root: Path) -> None:
        """Sound and fast again, over another folder."""
        cls.root, cls.seconds, cls.failures, cls.only = root, 0.0, 0, ""
        cls.error, cls.short, cls.flips = OSError("connection reset"), 0, 0
        cls.asked, cls.at_once, cls.most_at_once = Counter(), 0, 0

    def _file(self, path):
        return self.root / self._strip_protocol(path)

    def _spend(self, name: str) -> bool:
        with self.lock:
            left = getattr(type(self), name)
            setattr(type(self), name, max(0, left - 1))
            return left > 0

    def cat_file(self, path, start=None, end=None, **_):
        cls = type(self)
        with self.lock:
            cls.asked[path] += 1
            cls.at_once += 1
            cls.most_at_once = max(cls.most_at_once, cls.at_once)
        try:
            time.sleep(self.seconds)
            data = self._file(path).read_bytes()[start:end]
            if self.only not in path:
                return data
            if self._spend("failures"):
                raise self.error
            if self._spend("short"):
                return data[: len(data) // 2]
            if self._spend("flips"):
                middle = len(data) // 2
                return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]
            return data
        finally:
            with self.lock:
                cls.at_once -= 1

    def find(self, path, **_):
        folder = self._file(path)
        files = [file for file in folder.rglob("*") if file.is_file()]
        return sorted(str(file.relative_to(self.root)) for file in files)

    def info(self, path, **_):
        return {"name": path, "size": self._file(path).stat().st_size, "type": "file"}


fsspec.register_implementation("shaky", ShakyFileSystem, clobber=True)
