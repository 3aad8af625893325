"""Loads batches in background threads, starting at a given window."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from soda_jax.data.dataset import Dataset


class Loader(Iterator[dict[str, np.ndarray]]):
    """An endless iterator over batches; call `close`, or use it as a context manager.

    Attributes:
      windows: number of windows consumed, which is the complete iterator state. A new loader with
        this number as `start` continues where this one stopped, with any batch size and rows.
      waited: seconds spent waiting for data.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        start: int = 0,
        rows: Sequence[int] | None = None,
        *,
        groups: Sequence[Sequence[int]] = (),
        prefetch: int = 2,
        threads: int = 1,
    ):
        """Starts prefetching.

        Args:
          dataset: the mixture.
          batch_size: windows per global batch.
          start: number of windows consumed already.
          rows: rows of the global batch that this process reads, in this order; None for all.
          groups: rows that one device processes together. The windows of a batch are assigned to its rows
            such that these groups have about equal text; without groups, in stream order.
          prefetch: number of batches to prefetch.
          threads: number of batches to read at the same time.
        """
        self.windows, self.waited = start, 0.0
        self._dataset, self._batch_size = dataset, batch_size
        self._rows = range(batch_size) if rows is None else list(rows)
        if any(not 0 <= row < batch_size for row in self._rows):
            raise ValueError(f"rows {self._rows} are not all in a batch of {batch_size}")
        self._groups = groups
        self._next = start
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        self._ahead: deque[Future[dict[str, np.ndarray]]] = deque()
        for _ in range(max(1, prefetch)):
            self._request()

    def _request(self) -> None:
        self._ahead.append(self._pool.submit(self._load, self._next))
        self._next += self._batch_size

    def _load(self, k: int) -> dict[str, np.ndarray]:
        rows = self._rows
        if self._groups:
            order = self._dataset.balanced_rows(k, self._batch_size, self._groups)
            rows = order[rows].tolist()
        return self._dataset.batch(k, rows).arrays()

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the fields of the next `windows.Batch` by name, with the rows of this process.

        Raises:
          DamagedRecordError: if a record cannot be read and `on_corrupt_record` is "fatal".
          StoreError: if a remote store cannot be read.
        """
        began = time.perf_counter()
        batch = self._ahead[0].result()
        self.waited += time.perf_counter() - began
        self._ahead.popleft()
        self._request()
        self.windows += self._batch_size
        return batch

    def close(self) -> None:
        """Stops prefetching."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
