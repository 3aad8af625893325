"""Opens the shards of a split in one of the modes of `data.storage`.

| mode | how the shards are read | suited to |
|---|---|---|
| direct | with ArrayRecord's reader | local and mounted folders |
| stage | from a copy of each shard in `cache_dir` | a data set that fits on a disk of each host |
| range | one small request per record, `read_concurrency` at a time | `gs://` and other URLs |
| auto | direct for a path, range for a URL | |
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from soda_jax.data.format.reading import ShardReaders
from soda_jax.data.format.shards import ShardIndex, ShardInfo, index_path, read_index
from soda_jax.data.storage.locations import (
    Location,
    cache_folder,
    default_cache_dir,
    join,
)
from soda_jax.data.storage.ranges import RangeReader, RangeShards
from soda_jax.data.storage.remote import RemoteFiles
from soda_jax.data.storage.staging import StagedFile, stage
from soda_jax.errors import UserError
from soda_jax.files import is_url
from soda_jax.schema import DataConfig


class Shards(Protocol):
    """The shards of one split of a data set.

    Attributes:
      prefetches: whether `prefetch` has an effect.
    """

    prefetches: bool

    def location(self, shard: int) -> str:
        """Returns the path or URL of a shard, for messages."""

    def read(self, shard: int, number: int) -> bytes:
        """Returns the bytes of a record.

        Raises:
          DamagedRecordError: if the shard is missing or the record is damaged.
          StoreError: if the remote store cannot be read.
        """

    def prefetch(self, records: Iterable[tuple[int, int]]) -> Sequence[Any]:
        """Requests records (shard, number); they stay in memory while the result is referenced."""


class DirectShards:
    """Shards in a local folder."""

    prefetches = False

    def __init__(self, folder: Path, shards: Sequence[ShardInfo], readers: ShardReaders):
        """Sets the paths of `shards`, the manifest entries; `readers` may be shared by splits."""
        self._paths = [(folder / shard.file, shard.records) for shard in shards]
        self._readers = readers

    def location(self, shard: int) -> str:
        """Returns the path of a shard."""
        return str(self._paths[shard][0])

    def read(self, shard: int, number: int) -> bytes:
        """Returns the bytes of a record; raises DamagedRecordError if it cannot be read."""
        path, records = self._paths[shard]
        return self._readers.read(path, number, records)

    def prefetch(self, records: Iterable[tuple[int, int]]) -> Sequence[Any]:
        """Does nothing, because the operating system reads ahead."""
        return ()


class Storage:
    """Opens the splits of the data sets of a config.

    Attributes:
      remote: reads remote files and counts retried requests.
    """

    def __init__(self, config: DataConfig):
        """Creates the readers and the cache for the `data` settings of a run; opens no file."""
        self._config = config
        self.remote = RemoteFiles(config.read_retries, config.read_concurrency)
        self._readers = ShardReaders()
        self._ranges = RangeReader(self.remote, config.cache_bytes)

    def open(
        self, name: str, directory: Location, split: str, shards: Sequence[ShardInfo]
    ) -> tuple[Shards, list[ShardIndex]]:
        """Opens the shards of a split and reads their indexes; `stage` first copies the shards.

        Args:
          name: name of the source, for messages.
          directory: path or URL of the data set.
          split: "train" or "validation".
          shards: manifest entries of the shards of the split.

        Raises:
          UserError: if the mode is `direct` for a URL, or `stage` without `data.cache_dir`; if
            staging fails; or if an index is missing, damaged or does not match its checksum in the
            manifest.
        """
        storage = self._config.storage
        if storage == "auto":
            storage = "range" if is_url(directory) else "direct"
        if storage == "direct":
            if is_url(directory):
                raise UserError(
                    f"source {name}: {directory} is a URL and cannot be read with "
                    "data.storage=direct; choose range (small reads) or stage (a copy on a local "
                    "disk), or mount the store and set the path of the mount"
                )
            folder = Path(directory) / split
            return DirectShards(folder, shards, self._readers), _read_indexes(folder, shards)
        cache_dir = self._config.cache_dir
        if storage == "stage" and not cache_dir:
            raise UserError(
                "data.storage=stage needs data.cache_dir; set it to a folder with room for the data"
            )
        folder = cache_folder(cache_dir or default_cache_dir(), directory) / split
        files = []
        for shard in shards:
            index = index_path(folder / shard.file)
            files.append(StagedFile(join(directory, split, index.name), index, shard.index_crc32c))
            if storage == "stage":
                origin = join(directory, split, shard.file)
                files.append(StagedFile(origin, folder / shard.file, shard.crc32c, shard.bytes))
        what = "shards" if storage == "stage" else "indexes"
        stage(files, self.remote, f"{what} of {name}, {split}", self._config.read_concurrency)
        indexes = _read_indexes(folder, shards)
        if storage == "stage":
            return DirectShards(folder, shards, self._readers), indexes
        urls = [join(directory, split, shard.file) for shard in shards]
        offsets = [index.record_offsets for index in indexes]
        return RangeShards(urls, offsets, self._ranges), indexes


def _read_indexes(folder: Path, shards: Sequence[ShardInfo]) -> list[ShardIndex]:
    return [read_index(index_path(folder / shard.file), shard.index_crc32c) for shard in shards]
