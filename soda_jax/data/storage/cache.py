"""A least-recently-used cache of byte strings with a size limit in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Hashable


class ByteCache:
    """Keeps the most recently used byte strings, up to a total size; thread-safe."""

    def __init__(self, limit: int):
        """Creates an empty cache that keeps at most `limit` bytes."""
        self._limit = limit
        self._values: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._size = 0

    @property
    def size(self) -> int:
        """Total length of the cached values in bytes."""
        return self._size

    def get(self, key: Hashable) -> bytes | None:
        """Returns the value of a key, or None if it is not in the cache."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: bytes) -> None:
        """Adds or replaces a value, then evicts the least recently used values until all fit."""
        with self._lock:
            self._remove(key)
            self._values[key] = value
            self._size += len(value)
            while self._size > self._limit:
                self._remove(next(iter(self._values)))

    def remove(self, key: Hashable) -> None:
        """Removes a key if it is in the cache."""
        with self._lock:
            self._remove(key)

    def _remove(self, key: Hashable) -> None:
        if key in self._values:
            self._size -= len(self._values.pop(key))
