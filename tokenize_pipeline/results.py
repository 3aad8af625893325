"""The result of one shard: the last file written, by which the shard counts as finished.

DATASET/plan/0000/results/train-00003.json
"""

import dataclasses
from pathlib import Path

from soda_jax.checked_json import parse_checked_json, write_checked_json
from soda_jax.data.shards import ShardInfo, file_crc32c, index_path
from soda_jax.errors import UserError
from tokenize_pipeline.plan import Plan, ShardPlan
from tokenize_pipeline.quarantine import QuarantineRow


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """What became of one shard of the plan.

    Attributes:
      plan_digest: digest of the plan that it belongs to.
      info: the shard in the data set; None if every document of it was bad.
      dropped_documents: documents of which no utterance was left.
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
        """Reads a result; ValueError, KeyError, TypeError or OSError if a bit of it has changed."""
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
    # Named as the temporary files are, so that `sweep` removes what a killed worker leaves.
    return folder / "results" / f".{shard.name}.json.progress"


def note_progress(folder: Path, shard: ShardPlan, part: float) -> None:
    """Tells whoever watches that `part` (0 to 1) of the shard's work is done."""
    path = _progress_path(folder, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{part:.4f}")  # a torn file costs nothing: it is read again soon


def read_progress(folder: Path, shard: ShardPlan) -> float:
    """The part (0 to 1) of the shard that its worker noted last; 0 if it noted nothing."""
    try:
        return min(float(_progress_path(folder, shard).read_text()), 1.0)
    except (OSError, ValueError):
        return 0.0


def has_result(folder: Path, shard: ShardPlan) -> bool:
    """Whether a result is there, without looking into it: for progress."""
    return _path(folder, shard).exists()


def is_finished(dataset: Path, folder: Path, plan: Plan, shard: ShardPlan) -> bool:
    """Whether the shard's result belongs to the plan and the shard's bytes agree with it."""
    try:
        result = ShardResult.load(folder, shard)
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


def forget(folder: Path, shard: ShardPlan) -> None:
    """Removes a result that is not valid, so that it is not taken for progress."""
    _path(folder, shard).unlink(missing_ok=True)
    _progress_path(folder, shard).unlink(missing_ok=True)
