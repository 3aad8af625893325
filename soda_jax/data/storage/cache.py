"""A cache of byte strings with a bound in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Hashable


class ByteCache:
    """Keeps the byte strings used last, of so many bytes in all; threads may share it."""

    def __init__(self, limit: int):
        """Args: limit: the most bytes that are kept."""
        self._limit = limit
        self._held: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """How many bytes are kept now."""
        return self._bytes

    def get(self, key: Hashable) -> bytes | None:
        """What was put under a key, if it is still kept."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Hashable, value: bytes) -> None:
        """Keeps `value`, and drops what was unused for longest until the bound holds."""
        with self._lock:
            self._drop(key)
            self._held[key] = value
            self._bytes += len(value)
            while self._bytes > self._limit:
                self._drop(next(iter(self._held)))

    def drop(self, key: Hashable) -> None:
        """Forgets a key."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        if key in self._held:
            self._bytes -= len(self._held.pop(key))
