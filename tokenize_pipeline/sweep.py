"""Removes temporary files of killed jobs, and shards that belong to no plan."""

import re
from collections.abc import Mapping
from pathlib import Path

from soda_jax.data.format.shards import SHARD_SUFFIX, index_path

# Temporary names of write_atomic and ShardWriter: .NAME.SUFFIX
_LEFTOVER = re.compile(
    r"\.(shard-\d+\.(array_record|index\.npz)|(train|validation)-\d+\.jsonl?|plan\.json"
    r"|rejected\.jsonl|quarantine\.jsonl|manifest\.json|\d+\.json|tokenizer\.json)\.[^.]+"
)


def shard_file(number: int) -> str:
    """Returns the file name of a shard in the folder of its split."""
    return f"shard-{number:05d}{SHARD_SUFFIX}"


def shard_number(file: str) -> int:
    """Returns the number of a shard from its file name."""
    return int(file.removesuffix(SHARD_SUFFIX).removeprefix("shard-"))


def sweep(dataset: Path) -> None:
    """Removes temporary files; call it only while no other job writes to the data set."""
    for path in dataset.rglob(".*"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def remove_shards(dataset: Path, first_numbers: Mapping[str, int]) -> None:
    """Removes shards and indexes numbered `first_numbers[split]` or higher, left by an abandoned plan."""
    for split, first in first_numbers.items():
        for shard in (dataset / split).glob(f"shard-*{SHARD_SUFFIX}"):
            if shard_number(shard.name) >= first:
                shard.unlink()
        for index in (dataset / split).glob(f"shard-*{index_path('x').suffix}"):
            if shard_number(index.name.split(".")[0]) >= first:
                index.unlink()
