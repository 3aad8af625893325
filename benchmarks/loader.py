"""Tokens per second that one core reads: random windows of 4,096, both orders, a mixture of two sources.

    python benchmarks/loader.py

Two data sets of uniformly random codes in Mimi's shape (8 codebooks of 2,048, 12.5 frames per second;
records of about 8,192 tokens, utterances of 2 to 10 seconds) are written to a temporary folder, so they
are read from the page cache. Random codes are the worst case for the disk, because they cannot be
compressed. Prints one table: medians over repeats with their spread, the time of each step, random whole
records for comparison, and the bytes per token on disk, index included.

A second table has the time to read the batch of one host of 32 by byte range from a web server on
this machine that answers after `--latency` milliseconds, like an object store, with an increasing
number of simultaneous requests.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _machine import describe_machine
from _ranges import print_ranges
from _results import parse, written

from soda_jax.data.dataset import Dataset, make_dataset
from soda_jax.data.format.manifest import Manifest
from soda_jax.data.format.records import read_header
from soda_jax.data.format.shards import ShardWriter
from soda_jax.data.format.splitting import split_document
from soda_jax.data.windows import annotate, empty_batch
from soda_jax.tokens.documents import Utterance
from soda_jax.tokens.vocabulary import VocabularyLayout

SEQUENCE_LENGTH, BATCH = 4096, 32
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "was",
    "one",
    "have",
    "this",
    "from",
    "which",
)


def write_dataset(directory: Path, layout: VocabularyLayout, tokens: int, seed: int) -> None:
    """Writes documents of 1 to 79 utterances until there are `tokens` tokens in one order."""
    rng = np.random.default_rng(seed)
    written = 0
    with ShardWriter(directory / "train" / "shard-00000.array_record", layout) as writer:
        while written < tokens:
            utterances = []
            for _ in range(int(rng.integers(1, 80))):
                seconds = rng.uniform(2, 10)
                text = " ".join(
                    rng.choice(WORDS, max(1, int(2.5 * seconds)))
                )  # 150 words per minute
                ids = rng.integers(0, 128_000, max(1, int(3.3 * seconds))).astype(np.int32)
                codes = rng.integers(0, 2048, (int(12.5 * seconds), 8)).astype(np.uint16)
                utterances.append(Utterance(text, ids, codes))
                written += 4 + len(ids) + codes.size
            for record in split_document(f"{seed}/{written:012d}", utterances, layout):
                writer.write(record)
        info = writer.close()
    codec = {"name": "random", "fingerprint": "none", "sample_rate": 24000, "frame_rate": 12.5}
    Manifest("speech", layout, codec, "random", {"train": (info,)}).save(directory)


def measure(work: Callable[[int], None], repeats: int) -> tuple[float, float]:
    """Returns the median seconds of `work(repeat)` and half the interquartile range."""
    seconds = []
    for repeat in range(repeats):
        began = time.perf_counter()
        work(repeat)
        seconds.append(time.perf_counter() - began)
    low, middle, high = statistics.quantiles(seconds, n=4)
    return middle, (high - low) / 2


def steps(dataset: Dataset, repeats: int) -> list[tuple[str, float]]:
    """Returns the microseconds of the steps of one window, each timed separately on the same windows."""
    count = 100
    source = dataset.sources[0]
    length = dataset.sequence_length
    rng = np.random.default_rng(0)
    starts = (rng.integers(0, source.windows, count) * length).tolist()
    numbers = rng.integers(0, source.manifest.totals("train")["records"], count).tolist()
    records = [source.split.read_record(number) for number in numbers]
    batch = empty_batch(count, length)
    for row, start in enumerate(starts):
        source.read(start, batch.tokens[row])

    def locate(repeat: int) -> None:
        for k in range(count):
            dataset.locate(repeat * count + k)

    def read(_: int) -> None:
        for number in numbers:
            source.split.read_record(number)

    def check(_: int) -> None:
        for record in records:
            read_header(record, dataset.layout)

    def window(_: int) -> None:
        for row, start in enumerate(starts):
            source.read(start, batch.tokens[row])

    def describe(_: int) -> None:
        fresh = empty_batch(count, length)
        fresh.tokens[:] = batch.tokens
        for row in range(count):
            annotate(fresh, row, dataset.layout, [])

    work = {
        "place in the mixture (grain)": locate,
        "read one record": read,
        "check one record": check,
        "tokens of a window: about 1.5 records read, checked, unpacked, rendered": window,
        "segments, positions, classes, mask": describe,
    }
    return [(name, measure(run, repeats)[0] / count * 1e6) for name, run in work.items()]


def whole_records(dataset: Dataset, repeats: int) -> tuple[float, float]:
    """Returns the tokens per second of random whole records, and half the interquartile range."""
    count = 200
    source = dataset.sources[0]
    records = np.random.default_rng(0).integers(0, len(source.record_starts) - 1, (repeats, count))
    starts = source.record_starts[records]
    lengths = source.record_starts[records + 1] - starts
    out = np.empty(int(lengths.max()), np.int32)

    def read(repeat: int) -> None:
        for start, length in zip(starts[repeat].tolist(), lengths[repeat].tolist(), strict=True):
            source.read(start, out[:length])

    middle, spread = measure(read, repeats)
    rate = float(lengths.sum(axis=1).mean()) / middle
    return rate, rate * spread / middle


def stored_bytes(directory: Path) -> int:
    """Returns the bytes of the shards and indexes of a data set."""
    return sum(path.stat().st_size for path in (directory / "train").iterdir())


def main() -> None:
    """Writes the data, measures, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8_000_000, help="per source, in one order")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument(
        "--latency", type=float, default=30, help="ms per read by range; 0 skips the second table"
    )
    args = parse(parser, {"tokens": 2_000_000, "repeats": 9, "latency": 0.0})
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    layout = VocabularyLayout.soda()
    with written(args.json) as results, tempfile.TemporaryDirectory() as folder:
        sources = {}
        size = tokens = 0
        for number, weight in enumerate((0.7, 0.3)):
            path = Path(folder) / str(number)
            write_dataset(path, layout, args.tokens, number)
            sources[str(number)] = {"path": str(path), "weight": weight, "order": "both"}
            size += stored_bytes(path)
        config = {"sequence_length": SEQUENCE_LENGTH, "sources": sources}
        dataset = make_dataset(config)
        tokens = sum(source.tokens for source in dataset.sources) // 2

        def batches(repeat: int) -> None:
            dataset.batch(repeat * BATCH, range(BATCH))

        measure(batches, args.repeats)
        middle, spread = measure(batches, args.repeats)
        rate, unit = BATCH * SEQUENCE_LENGTH / middle, middle / BATCH * 1e6
        print(f"one core of {describe_machine()}; {tokens:,} tokens in one order")
        print(f"tokens per second        {rate / 1e6:8.1f} M  ± {100 * spread / middle:.0f}%")
        print(f"a window of {SEQUENCE_LENGTH}         {unit:8.0f} µs")
        results.add("windows in random order", "ours", "tokens_per_second", [rate])
        for name, microseconds in steps(dataset, args.repeats):
            print(f"  {microseconds:6.1f} µs  {name}")
            results.add(name, "ours", "microseconds", [microseconds])
        rate, spread = whole_records(dataset, args.repeats)
        results.add("whole records", "ours", "tokens_per_second", [rate])
        results.add("bytes per token on disk", "ours", "bytes", [size / tokens])
        print(f"whole records, tokens/s  {rate / 1e6:8.1f} M  ± {100 * spread / rate:.0f}%")
        print(f"bytes per token on disk  {size / tokens:8.3f}")
        if args.latency:
            print_ranges(config, Path(folder), args.latency / 1e3, min(args.repeats, 9))


if __name__ == "__main__":
    main()
