"""Records by byte range: one small read each, many at a time, kept in a bounded cache."""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from soda_jax.data.reading import damaged
from soda_jax.data.records import check_sum
from soda_jax.data.shards import ShardIndex, ShardInfo, index_path, read_index
from soda_jax.data.storage.cache import ByteCache
from soda_jax.data.storage.locations import join
from soda_jax.data.storage.places import find_places, unpack_record
from soda_jax.data.storage.remote import RemoteFiles, ShortReadError
from soda_jax.data.storage.workers import Workers

Key = tuple[str, int]


class RangeReader:
    """What the shards of all sources share: the store, the threads and the cache.

    Attributes:
      remote: reads the store.
      cache: of whole, checked records.
    """

    def __init__(self, remote: RemoteFiles, cache_bytes: int, threads: int):
        """Args: remote: reads the store. cache_bytes: of records. threads: reads at a time."""
        self.remote, self.cache = remote, ByteCache(cache_bytes)
        self._workers = Workers(threads, "range")
        # What somebody waits for or holds; without a holder the cache decides what is kept.
        self._flying: WeakValueDictionary[Key, Future[bytes]] = WeakValueDictionary()
        self._lock = threading.Lock()

    def request(self, key: Key, shards: "RangeShards", shard: int, number: int) -> Future[bytes]:
        """The record under a key, to come; one that is kept or under way is not read again."""
        with self._lock:
            flying = self._flying.get(key)
            if flying is not None:
                return flying
            kept = self.cache.get(key)
            if kept is not None:
                if check_sum(kept):
                    done: Future[bytes] = Future()
                    done.set_result(kept)
                    return done
                self.cache.drop(key)
            future = self._flying[key] = self._workers.submit(
                self._read, key, shards, shard, number
            )
            return future

    def _read(self, key: Key, shards: "RangeShards", shard: int, number: int) -> bytes:
        record = shards.fetch(shard, number)
        self.cache.put(key, record)
        return record


class RangeShards:
    """The shards of one split of a data set, read by byte range; see `storage.split.Shards`."""

    reads_ahead = True

    def __init__(
        self, folder: str, shards: Sequence[ShardInfo], index_folder: Path, reader: RangeReader
    ):
        """Args: folder: URL of the split. shards: of it. index_folder: their indexes. reader: shared."""
        self._shards, self._index_folder, self._reader = shards, index_folder, reader
        self._urls = [join(folder, shard.file) for shard in shards]
        # From the indexes, and those in use: an index of version 1 has none.
        self._indexed: list[np.ndarray | None] = [None] * len(shards)
        self._places = list(self._indexed)
        self._place_locks = [threading.Lock() for _ in shards]

    def read_indexes(self) -> list[ShardIndex]:
        """The index of each shard; the places of the records are kept here."""
        indexes = [
            read_index(index_path(self._index_folder / shard.file), shard.index_crc32c)
            for shard in self._shards
        ]
        self._indexed = [index.places for index in indexes]
        self._places = list(self._indexed)
        return indexes

    def location(self, shard: int) -> str:
        """The URL of a shard."""
        return self._urls[shard]

    def ahead(self, records: Iterable[tuple[int, int]]) -> list[Any]:
        """Begins to read records (shard, number), all at once; keep the result until they are read."""
        return [
            self._reader.request((self._urls[shard], number), self, shard, number)
            for shard, number in records
        ]

    def read(self, shard: int, number: int) -> bytes:
        """The bytes of a record.

        Raises:
          DamagedRecordError: if the shard is missing or truncated, or what is in the record's place
            is not it, at a second reading either.
          StoreError: if the store cannot be read.
        """
        return self._reader.request((self._urls[shard], number), self, shard, number).result()

    def fetch(self, shard: int, number: int) -> bytes:
        """Reads a record from the store and checks it; raises as `read` does."""
        url, reason = self._urls[shard], ""
        try:
            for _ in range(2):
                try:
                    places = self._places_of(shard)
                    start, stop = int(places[number]), int(places[number + 1])
                    record = unpack_record(self._reader.remote.read(url, start, stop), start)
                    if check_sum(record):
                        return record
                    reason = "its checksum (crc32c) does not match"
                except ValueError as error:
                    reason = str(error)
                # Places that came from the store may be what is wrong.
                self._places[shard] = self._indexed[shard]
        except FileNotFoundError:
            raise damaged(url, number, "the shard is missing") from None
        except ShortReadError as error:
            raise damaged(url, number, f"the shard is truncated ({error})") from None
        raise damaged(url, number, f"{reason}, in two readings from the store")

    def _places_of(self, shard: int) -> np.ndarray:
        """The places from the index; for an index of version 1 from the shard's footer, read once."""
        places = self._places[shard]
        if places is not None:
            return places
        with self._place_locks[shard]:
            places = self._places[shard]
            if places is None:
                url, info = self._urls[shard], self._shards[shard]
                places = find_places(
                    lambda start, stop: self._reader.remote.read(url, start, stop), info.bytes
                )
                if len(places) != info.records + 1:
                    raise ValueError(
                        f"the shard has {len(places) - 1} records, its index {info.records}"
                    )
                self._places[shard] = places
            return places
