"""What the tests of several processes share: their environment, and runs that say what they read."""

import itertools
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from run_toys import Watcher, terminate
from toys import xla_flags

from soda_jax.train import loop


def environment_of_two() -> dict[str, str]:
    """Variables for processes of four devices that compile as quickly as the tests do."""
    here = Path(__file__).parent
    return {
        "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, here.parents[1]))),
        "XLA_FLAGS": xla_flags(4),
    }


def rows_as_lines(number: int, batch, rows) -> list[str]:
    """A line `row BATCH ROW CHECKSUM` for each of the `rows` that `batch` holds."""
    return [
        f"row {number} {row} "
        f"{zlib.crc32(b''.join(np.ascontiguousarray(batch[name][at]) for name in sorted(batch)))}"
        for at, row in enumerate(rows)
    ]


@contextmanager
def recorded_batches(write: Callable[[str], None]) -> Iterator[None]:
    """Writes the lines of `rows_as_lines` for every batch that a run puts on its devices."""
    place, counts = loop.place_batch, itertools.count()

    def telling(batch, rows, mesh, size):
        for line in rows_as_lines(next(counts), batch, rows):
            write(line)
        return place(batch, rows, mesh, size)

    loop.place_batch = telling
    try:
        yield
    finally:
        loop.place_batch = place


def read_rows(lines: list[str]) -> dict[tuple[int, int], str]:
    """(batch, row) → checksum of the lines of `recorded_batches`, of one process or of several."""
    found: dict[tuple[int, int], str] = {}
    for line in lines:
        if line.startswith("row "):
            _, batch, row, checksum = line.split()
            assert found.setdefault((int(batch), int(row)), checksum) == checksum, line
    return found


def train_until(config, workdir, step: int) -> int:
    """Trains and stops after `step` through SIGTERM."""

    def stop():
        terminate()
        if jax.process_count() > 1:
            time.sleep(5)  # jax's preemption notice arrives within a second

    return loop.train(config, workdir, hooks=[Watcher(at=step, action=stop)])
