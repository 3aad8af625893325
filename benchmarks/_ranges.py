"""Windows read by byte range from a store that takes its time, beside the same windows read in place."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from soda_jax.data.dataset import Dataset, make_dataset

# What a host reads in a step of 512 windows on 32 hosts.
WINDOWS = 16
THREADS = (1, 4, 8, 16, 32, 64)


class SlowFileSystem(LocalFileSystem):
    """The local file system, each read of which takes `seconds` longer; `slow://` and an absolute path."""

    protocol = "slow"
    seconds = 0.0
    reads = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).removeprefix("slow://"))

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **arguments: Any
    ) -> bytes:
        """As the local one, but late."""
        type(self).reads += 1
        time.sleep(self.seconds)
        return super().cat_file(path, start, end, **arguments)


def print_ranges(config: Mapping[str, Any], folder: Path, latency: float, repeats: int) -> None:
    """Prints a table: the time of a host's batch in place, by range, and by range with latency.

    Args:
      config: data part of a config with local paths.
      folder: for the indexes.
      latency: seconds that a read of the store takes.
      repeats: batches of each kind; they are interleaved, and each is read once.
    """
    fsspec.register_implementation("slow", SlowFileSystem, clobber=True)
    # Nothing is kept: in training a record seldom comes twice.
    remote = {**config, "storage": "range", "cache_dir": str(folder), "cache_bytes": 0}
    remote["sources"] = {
        name: {**source, "path": f"slow://{source['path']}"}
        for name, source in config["sources"].items()
    }
    ways: list[tuple[str, float, Dataset]] = [("in place", 0.0, make_dataset(config))]
    ways.append(("by range, 32 threads", 0.0, make_dataset(remote)))
    for threads in THREADS:
        name = f"by range, {threads} thread{'s' if threads > 1 else ''}"
        ways.append((name, latency, make_dataset({**remote, "read_threads": threads})))
    seconds: dict[int, list[float]] = {number: [] for number in range(len(ways))}
    for _, _, dataset in ways:
        dataset.batch(0, range(WINDOWS))
    SlowFileSystem.reads = 0
    for repeat in range(1, repeats + 1):
        for number, (_, wait, dataset) in enumerate(ways):
            SlowFileSystem.seconds = wait
            began = time.perf_counter()
            dataset.batch(repeat * WINDOWS, range(WINDOWS))
            seconds[number].append(time.perf_counter() - began)
    SlowFileSystem.seconds = 0.0
    reads = SlowFileSystem.reads / repeats / (len(ways) - 1)
    print(
        f"\n{WINDOWS} windows of a host (512 on 32 hosts), {reads:.0f} records, interleaved medians"
    )
    print(f"{'':24}{'a read takes':>14}{'a batch':>12}{'in place':>12}{'reads one by one':>19}")
    place = statistics.median(seconds[0])
    for number, (name, wait, _) in enumerate(ways):
        middle = statistics.median(seconds[number])
        alone = f"{reads * wait / middle:.1f} x faster" if wait else ""
        print(
            f"{name:24}{wait * 1e3:>11.0f} ms{middle * 1e3:>9.1f} ms{middle / place:>10.1f} x{alone:>19}"
        )
