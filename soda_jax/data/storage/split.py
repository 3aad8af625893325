"""The shards of a split behind one interface, wherever they lie.

| storage | what happens | for |
|---|---|---|
| direct | read in place, by ArrayRecord's own reader | local and mounted folders |
| stage | copied whole to `cache_dir` before the first read | a data set that fits the disk of each host |
| range | a small read for each record, `read_threads` at a time | `gs://` and any other URL |
| auto | direct for a path, range for a URL | |
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from soda_jax.data.reading import ShardReaders
from soda_jax.data.shards import ShardIndex, ShardInfo, index_path, read_index
from soda_jax.data.storage.locations import (
    Location,
    cache_folder,
    default_cache_dir,
    is_url,
    join,
)
from soda_jax.data.storage.ranges import RangeReader, RangeShards
from soda_jax.data.storage.remote import RemoteFiles
from soda_jax.data.storage.staging import Copy, stage
from soda_jax.errors import UserError

STORAGES = ("auto", "direct", "stage", "range")


class Shards(Protocol):
    """The shards of one split of a data set.

    Attributes:
      reads_ahead: whether `ahead` is of any use.
    """

    reads_ahead: bool

    def read_indexes(self) -> list[ShardIndex]:
        """The index of each shard; UserError if one is missing or not that of the manifest."""

    def location(self, shard: int) -> str:
        """Path or URL of a shard, for messages."""

    def read(self, shard: int, number: int) -> bytes:
        """The bytes of a record; raises DamagedRecordError, or StoreError where there is a store."""

    def ahead(self, records: Iterable[tuple[int, int]]) -> list[Any]:
        """Begins to read records (shard, number); they are there at least while the result is kept."""


class DirectShards:
    """Shards that lie here: read in place."""

    reads_ahead = False

    def __init__(self, folder: Path, shards: Sequence[ShardInfo], readers: ShardReaders):
        """Args: folder: of the split. shards: what the manifest says. readers: the open files."""
        self._shards, self._readers = shards, readers
        self._paths = [(folder / shard.file, shard.records) for shard in shards]

    def read_indexes(self) -> list[ShardIndex]:
        """The index of each shard."""
        return [
            read_index(index_path(path), shard.index_crc32c)
            for (path, _), shard in zip(self._paths, self._shards, strict=True)
        ]

    def location(self, shard: int) -> str:
        """The path of a shard."""
        return str(self._paths[shard][0])

    def read(self, shard: int, number: int) -> bytes:
        """The bytes of a record; DamagedRecordError if the shard does not give them."""
        path, records = self._paths[shard]
        return self._readers.read(path, number, records)

    def ahead(self, records: Iterable[tuple[int, int]]) -> list[Any]:
        """Nothing: the operating system reads ahead."""
        return []


class Storage:
    """Opens the splits of the data sets of a config.

    Attributes:
      remote: reads what is not local; it knows how many reads had to be repeated.
    """

    def __init__(self, config: Mapping[str, Any]):
        """Args: config: the completed data part of a config, see `soda_jax.data.config`."""
        self._config = config
        self.remote = RemoteFiles(config["retries"])
        self._readers = ShardReaders()
        self._ranges: RangeReader | None = None

    def open(
        self, name: str, directory: Location, split: str, shards: Sequence[ShardInfo]
    ) -> Shards:
        """Opens the shards of a split; with `stage` they are copied first.

        Args:
          name: of the source, for messages.
          directory: of the data set.
          split: "train" or "validation".
          shards: what the manifest says of them.

        Raises:
          UserError: if a URL is to be read directly, or staging fails.
        """
        storage = self._config["storage"]
        if storage == "auto":
            storage = "range" if is_url(directory) else "direct"
        if storage == "direct":
            if is_url(directory):
                raise UserError(
                    f"source {name}: {directory} is a URL and cannot be read with "
                    "data.storage=direct; choose range (small reads), stage (a copy on this disk), or "
                    "mount it and name the path"
                )
            return DirectShards(Path(directory) / split, shards, self._readers)
        cache_dir = self._config["cache_dir"]
        if storage == "stage" and not cache_dir:
            raise UserError(
                "data.storage=stage needs data.cache_dir, a folder with room for the data"
            )
        folder = cache_folder(cache_dir or default_cache_dir(), directory) / split
        copies, threads = [], self._config["read_threads"]
        for shard in shards:
            index = index_path(folder / shard.file)
            copies.append(Copy(join(directory, split, index.name), index, shard.index_crc32c))
            if storage == "stage":
                origin = join(directory, split, shard.file)
                copies.append(Copy(origin, folder / shard.file, shard.crc32c, shard.bytes))
        what = "shards" if storage == "stage" else "indexes"
        stage(copies, self.remote, f"{what} of {name}, {split}", threads)
        if storage == "stage":
            return DirectShards(folder, shards, self._readers)
        if self._ranges is None:
            self._ranges = RangeReader(self.remote, self._config["cache_bytes"], threads)
        return RangeShards(join(directory, split), shards, folder, self._ranges)
