"""Reads and writes the result and progress of a shard; removes files of killed workers.

DATASET/train/shard-00003.array_record          the shard, with its index
DATASET/plan/0000/results/train-00003.json      its result, written last
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from soda_jax.checked_json import parse_checked_json, write_checked_json
from soda_jax.data.format.shards import SHARD_SUFFIX, ShardInfo, file_crc32c, index_path
from soda_jax.errors import UserError
from tokenize_pipeline.plan import Plan, ShardPlan, plan_folder
from tokenize_pipeline.quarantine import QuarantineRow

# Temporary names of write_atomic and ShardWriter: .NAME.SUFFIX
_LEFTOVER = re.compile(
    r"\.(shard-\d+\.(array_record|index\.npz)|(train|validation)-\d+\.jsonl?|plan\.json"
    r"|rejected\.jsonl|quarantine\.jsonl|manifest\.json|\d+\.json|tokenizer\.json)\.[^.]+"
)


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """The outcome of one shard of the plan.

    Attributes:
      plan_digest: digest of the plan that contains the shard.
      info: manifest entry of the shard; None if the shard has no usable utterance.
      dropped_documents: documents without a usable utterance.
      quarantine: one row for each bad utterance, in plan order.
    """

    plan_digest: str
    info: ShardInfo | None
    dropped_documents: int
    quarantine: list[QuarantineRow]

    def save(self, folder: Path, shard: ShardPlan) -> None:
        """Writes the result into the plan folder, atomically."""
        write_checked_json(_path(folder, shard), dataclasses.asdict(self))
        _progress_path(folder, shard).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path, shard: ShardPlan) -> "ShardResult":
        """Reads a result.

        Raises:
          ValueError, KeyError, TypeError, OSError: if the file is damaged or missing.
        """
        value = parse_checked_json(_path(folder, shard).read_bytes())
        info = value["info"]
        return cls(
            value["plan_digest"],
            ShardInfo(**info) if info else None,
            value["dropped_documents"],
            [QuarantineRow(**row) for row in value["quarantine"]],
        )


def _path(folder: Path, shard: ShardPlan) -> Path:
    return folder / "results" / f"{shard.name}.json"


def _progress_path(folder: Path, shard: ShardPlan) -> Path:
    # Named like temporary files, so that `sweep` removes the file of a killed worker.
    return folder / "results" / f".{shard.name}.json.progress"


def write_progress(folder: Path, shard: ShardPlan, part: float) -> None:
    """Records that the fraction `part` (0 to 1) of the shard's work is done."""
    path = _progress_path(folder, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{part:.4f}")  # not atomic, because the number is only displayed


def read_progress(folder: Path, shard: ShardPlan) -> float:
    """Returns the fraction (0 to 1) of the shard's work that is recorded as done; 0 if none is."""
    try:
        return min(float(_progress_path(folder, shard).read_text()), 1.0)
    except (OSError, ValueError):
        return 0.0


def has_result(folder: Path, shard: ShardPlan) -> bool:
    """Returns whether the shard has a result file, valid or not."""
    return _path(folder, shard).exists()


def is_finished(dataset: Path, plan: Plan, shard: ShardPlan) -> bool:
    """Returns whether the shard's result belongs to the plan and matches the bytes of the shard."""
    try:
        result = ShardResult.load(plan_folder(dataset, plan.generation), shard)
        if result.plan_digest != plan.digest:
            return False
        if result.info is None:
            return True
        path = dataset / shard.split / result.info.file
        return (
            file_crc32c(path) == (result.info.bytes, result.info.crc32c)
            and file_crc32c(index_path(path))[1] == result.info.index_crc32c
        )
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return False


def remove_result(folder: Path, shard: ShardPlan) -> None:
    """Removes a stale result and progress file of a shard, so that neither counts as progress."""
    _path(folder, shard).unlink(missing_ok=True)
    _progress_path(folder, shard).unlink(missing_ok=True)


def shard_file(number: int) -> str:
    """Returns the file name of a shard in the folder of its split."""
    return f"shard-{number:05d}{SHARD_SUFFIX}"


def shard_number(file: str) -> int:
    """Returns the number of a shard from the file name of the shard or its index."""
    return int(file.removeprefix("shard-").split(".")[0])


def sweep(dataset: Path) -> None:
    """Removes temporary files; call it only while no other job writes to the data set."""
    for path in dataset.rglob(".*"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def remove_shards(dataset: Path, first_numbers: Mapping[str, int]) -> None:
    """Removes the shards of an abandoned plan: those numbered `first_numbers[split]` or higher."""
    for split, first in first_numbers.items():
        for path in (dataset / split).glob("shard-*.*"):
            if shard_number(path.name) >= first:
                path.unlink()
