"""Reading records: by place from many shards at once, or one shard from end to end."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soda_jax.data.records import DamagedRecordError, RecordData, decode_record
from soda_jax.tokens.vocabulary import VocabularyLayout

# No read-ahead and no threads of its own: 7 µs for a record from page cache instead of 1 ms.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_BYTES = 1 << 15


class ShardReaders:
    """Random access to the records of shards; many threads may read at once.

    At most `max_open` files are open; the one unused for longest is closed first.
    """

    def __init__(self, max_open: int = 256):
        """Args: max_open: the largest number of open files."""
        self._max_open = max_open
        self._readers: OrderedDict[Path, Any] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: Path, number: int, records: int) -> bytes:
        """The bytes of record `number` of a shard that the index says has `records` records.

        Raises:
          DamagedRecordError: if the shard is missing, truncated, damaged there, or not the one of
            its index; the message names the shard and the record.
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
        """How many shards are open now."""
        return len(self._readers)

    def _open(self, shard: Path, number: int, records: int) -> Any:
        try:
            reader = open_shard(shard)
        except DamagedRecordError as error:
            raise damaged(shard, number, str(error)) from None
        if reader.num_records() != records:
            reason = f"the shard has {reader.num_records()} records, its index {records}"
            raise damaged(shard, number, reason)
        with self._lock:
            reader = self._readers.setdefault(shard, reader)
            # Dropped, not closed: another thread may be reading it; the last reference closes it.
            while len(self._readers) > self._max_open:
                self._readers.popitem(last=False)
        return reader


def read_records(
    shard: str | os.PathLike[str], layout: VocabularyLayout
) -> Iterator[RecordData | DamagedRecordError]:
    """All records of a shard in stored order; an error stands in the place of a damaged one.

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
    """The error for a record that cannot be read, with its place and what to do."""
    return DamagedRecordError(f"{shard}, record {number} is damaged: {reason}; restore the shard")


def open_shard(shard: Path) -> Any:
    """An ArrayRecord reader of a shard; DamagedRecordError with the bare reason if there is none."""
    from array_record.python.array_record_module import ArrayRecordReader

    # The reader says nothing of a missing file until the first read.
    if not shard.is_file():
        raise DamagedRecordError("the shard is missing")
    reader = ArrayRecordReader(str(shard), _OPTIONS, file_reader_buffer_size=_BUFFER_BYTES)
    if not reader.ok():
        raise DamagedRecordError("the shard is truncated or not an ArrayRecord file")
    return reader
