"""Reads records by byte range: one small request per record, many at a time, with a cache."""

import threading
from collections.abc import Iterable, Sequence
from weakref import WeakValueDictionary

import numpy as np

from soda_jax.data.format.reading import damaged
from soda_jax.data.format.records import checksum_matches
from soda_jax.data.storage.cache import ByteCache
from soda_jax.data.storage.record_offsets import unpack_record
from soda_jax.data.storage.remote import RemoteFiles, ShortReadError


class RangeReader:
    """Reads records through one cache for the shards of all sources; thread-safe.

    Attributes:
      remote: reads the files.
      cache: records with a valid checksum, by shard URL and record number.
    """

    def __init__(self, remote: RemoteFiles, cache_bytes: int):
        """Creates an empty cache of at most `cache_bytes` bytes for the records that are read."""
        self.remote, self.cache = remote, ByteCache(cache_bytes)
        # Records that are pending or still referenced; the cache may be too small for all of them.
        self._pending: WeakValueDictionary[tuple[str, int], PendingRecord] = WeakValueDictionary()
        self._lock = threading.Lock()

    def request(self, url: str, number: int, start: int, stop: int) -> "PendingRecord":
        """Requests record `number` of a shard; its ArrayRecord chunk is in bytes [start, stop).

        A read is started only if the record is neither pending nor in the cache.
        """
        with self._lock:
            record = self._pending.get((url, number))
            if record is None:
                record = PendingRecord(self, url, number, start, stop)
                self._pending[url, number] = record
            return record


class PendingRecord:
    """A record that has been requested; see `RangeReader.request`."""

    def __init__(self, reader: RangeReader, url: str, number: int, start: int, stop: int):
        """Looks up the record in the cache; starts a read if it is not there."""
        self._reader, self._key, self._range = reader, (url, number), (start, stop)
        self._lock = threading.Lock()
        self._bytes = reader.cache.get(self._key)
        if self._bytes is not None and not checksum_matches(self._bytes):  # a bit flipped in memory
            self._bytes = None
        if self._bytes is None:
            self._read = reader.remote.start(url, start, stop)

    def result(self) -> bytes:
        """Waits for the record and returns its bytes; raises the errors of `RangeShards.read`."""
        with self._lock:
            if self._bytes is None:
                self._bytes = self._receive()
                self._reader.cache.put(self._key, self._bytes)
            return self._bytes

    def _receive(self) -> bytes:
        (url, number), (start, stop) = self._key, self._range
        try:
            for attempt in range(2):
                if attempt:
                    self._read = self._reader.remote.start(url, start, stop)
                try:
                    record = unpack_record(self._read.result(), start)
                    if checksum_matches(record):
                        return record
                    reason = "its checksum (crc32c) does not match"
                except ValueError as error:
                    reason = str(error)
        except FileNotFoundError:
            raise damaged(url, number, "the shard is missing") from None
        except ShortReadError as error:
            raise damaged(url, number, f"the shard is truncated ({error})") from None
        raise damaged(url, number, f"{reason}, in two reads from the store")


class RangeShards:
    """The shards of one split of a data set, read by byte range; see `storage.modes.Shards`."""

    prefetches = True

    def __init__(self, urls: Sequence[str], offsets: Sequence[np.ndarray], reader: RangeReader):
        """Stores the URL and the record offsets of each shard; `reader` may be shared by splits."""
        self._urls, self._offsets, self._reader = urls, offsets, reader

    def location(self, shard: int) -> str:
        """Returns the URL of a shard."""
        return self._urls[shard]

    def prefetch(self, records: Iterable[tuple[int, int]]) -> list[PendingRecord]:
        """Requests records (shard, number); they stay in memory while the result is referenced."""
        return [self._request(shard, number) for shard, number in records]

    def read(self, shard: int, number: int) -> bytes:
        """Returns the bytes of a record.

        Raises:
          DamagedRecordError: if the shard is missing or truncated, or if the record is damaged in
            two reads.
          StoreError: if the store cannot be read.
        """
        return self._request(shard, number).result()

    def _request(self, shard: int, number: int) -> PendingRecord:
        start, stop = self._offsets[shard][number : number + 2].tolist()
        return self._reader.request(self._urls[shard], number, start, stop)
