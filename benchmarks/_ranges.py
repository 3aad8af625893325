"""Times a batch that is read by byte range from a slow web server, or from local files."""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from soda_jax.data.dataset import Dataset, make_dataset

# The windows of one host at a batch of 512 on 32 hosts.
WINDOWS = 16
CONCURRENCY = (1, 4, 8, 16, 32, 64)


@contextlib.contextmanager
def range_server(folder: Path) -> Iterator[str]:
    """Serves a folder in another process, on other cores if there are any; yields the URL."""
    script = Path(__file__).with_name("_range_server.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        cores = set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0)
        with contextlib.suppress(OSError):  # a container may forbid other cores
            os.sched_setaffinity(process.pid, cores or {0})
        assert process.stdout is not None
        yield f"http://localhost:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def print_ranges(config: Mapping[str, Any], folder: Path, latency: float, repeats: int) -> None:
    """Prints the time to read a batch from local files, and by range without and with latency.

    Args:
      config: data part of a config with local paths, all below `folder`.
      folder: the folder to serve; indexes are cached in its subfolder `cache`.
      latency: seconds that the server waits before it answers.
      repeats: batches of each kind; the kinds alternate, and each batch is read once.
    """
    with range_server(folder) as server:

        def by_range(seconds: float, concurrency: int) -> Dataset:
            sources = {
                name: {
                    **source,
                    "path": f"{server}/{seconds:g}/{Path(source['path']).relative_to(folder)}",
                }
                for name, source in config["sources"].items()
            }
            # Without a cache: in training a record is seldom read twice.
            settings = {"storage": "range", "cache_bytes": 0, "cache_dir": str(folder / "cache")}
            return make_dataset({
                **config, **settings, "sources": sources, "read_concurrency": concurrency,
            })  # fmt: skip

        kinds: list[tuple[str, float, Dataset]] = [("in place", 0.0, make_dataset(config))]
        kinds.append(("by range, 32 at a time", 0.0, by_range(0.0, 32)))
        for count in CONCURRENCY:
            kinds.append((f"by range, {count} at a time", latency, by_range(latency, count)))
        seconds: list[list[float]] = [[] for _ in kinds]
        for repeat in range(repeats + 1):
            for times, (_, _, dataset) in zip(seconds, kinds, strict=True):
                began = time.perf_counter()
                dataset.batch(repeat * WINDOWS, range(WINDOWS))
                times.append(time.perf_counter() - began)
    medians = [statistics.median(times[1:]) for times in seconds]  # the first one opens connections
    print(
        f"\n{WINDOWS} windows of a host (512 on 32 hosts), medians of {repeats} alternating batches"
    )
    print(f"{'':24}{'latency':>14}{'a batch':>12}{'ratio':>14}")
    for (name, wait, _), median in zip(kinds, medians, strict=True):
        print(
            f"{name:24}{wait * 1e3:>11.0f} ms{median * 1e3:>9.1f} ms{median / medians[0]:>12.1f} x"
        )
