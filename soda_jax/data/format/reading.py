"""Reads records by number from many shards, or all records of one shard in order."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soda_jax.data.format.records import DamagedRecordError, RecordData, decode_record
from soda_jax.tokens.vocabulary import VocabularyLayout

# Without read-ahead and threads, reading a record from the page cache takes 7 µs instead of 1 ms.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_BYTES = 1 << 15


class ShardReaders:
    """Random access to the records of shards; thread-safe.

    At most `max_open` files are open; the least recently used one is closed first.
    """

    def __init__(self, max_open: int = 256):
        """Stores `max_open`, the largest number of open files."""
        self._max_open = max_open
        self._readers: OrderedDict[Path, Any] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: Path, number: int, records: int) -> bytes:
        """Returns the bytes of record `number`; `records` is the record count in the shard's index.

        Raises:
          DamagedRecordError: if the shard is missing or truncated, the record is damaged, or the
            shard does not have `records` records; the message names the shard and the record.
        """
        with self._lock:
            reader = self._readers.get(shard)
            if reader is not None:
                self._readers.move_to_end(shard)
        if reader is None:
            reader = self._open(shard, number, records)
        try:
            return reader.read([number])[0]
        except (RuntimeError, IndexError) as error:
            raise damaged(shard, number, str(error)) from None

    @property
    def open_files(self) -> int:
        """Number of open shards."""
        return len(self._readers)

    def _open(self, shard: Path, number: int, records: int) -> Any:
        try:
            reader = open_shard(shard)
        except DamagedRecordError as error:
            raise damaged(shard, number, str(error)) from None
        if reader.num_records() != records:
            reason = f"the shard has {reader.num_records()} records, its index has {records}"
            raise damaged(shard, number, reason)
        with self._lock:
            reader = self._readers.setdefault(shard, reader)
            # The removed reader is not closed here, because another thread may use it. Its file is
            # closed when the last reference is dropped.
            while len(self._readers) > self._max_open:
                self._readers.popitem(last=False)
        return reader


def read_records(
    shard: str | os.PathLike[str], layout: VocabularyLayout
) -> Iterator[RecordData | DamagedRecordError]:
    """Yields all records of a shard in stored order; for a damaged record, yields the error.

    Raises:
      DamagedRecordError: if the shard cannot be opened.
    """
    shard = Path(shard)
    try:
        reader = open_shard(shard)
    except DamagedRecordError as error:
        raise damaged(shard, 0, str(error)) from None
    for number in range(reader.num_records()):
        try:
            yield decode_record(reader.read([number])[0], layout)
        except (RuntimeError, IndexError, DamagedRecordError) as error:
            yield damaged(shard, number, str(error))


def damaged(shard: str | os.PathLike[str], number: int, reason: str) -> DamagedRecordError:
    """Returns the error for a record that cannot be read, with its location and the fix."""
    return DamagedRecordError(f"{shard}, record {number} is damaged: {reason}; restore the shard")


def open_shard(shard: Path) -> Any:
    """Opens a shard; raises DamagedRecordError with the reason but without the path."""
    from array_record.python.array_record_module import ArrayRecordReader

    # The reader does not report a missing file before the first read.
    if not shard.is_file():
        raise DamagedRecordError("the shard is missing")
    reader = ArrayRecordReader(str(shard), _OPTIONS, file_reader_buffer_size=_BUFFER_BYTES)
    if not reader.ok():
        raise DamagedRecordError("the shard is truncated or not an ArrayRecord file")
    return reader
