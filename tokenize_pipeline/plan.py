"""The plan: split, shard and position of each document, fixed before any shard is tokenized.

    DATASET/plan/0000/plan.json             settings, digests of the inputs, shards, counts
    DATASET/plan/0000/train-00003.jsonl     the documents of one shard, in order
    DATASET/plan/0000/rejected.jsonl        input rows that cannot be used
    DATASET/plan/0000/results/              results of the shards, see `results.py`

Each generation of the data set has a numbered folder: 0000 for the first one, then one for each
`--append`. `plan.json` is written last; a folder without it is ignored. The plan is a pure function
of the inputs and settings: it does not depend on the clock, the host or Python's `hash()`.
"""

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soda_jax.checked_json import parse_checked_json, write_checked_json
from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, UtteranceSource

FORMAT_VERSION = 2
REJECTED = "rejected.jsonl"


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """The plan of one shard.

    Attributes:
      split: "train" or "validation".
      number: number of the shard in the split; each generation continues the numbering.
      documents: number of documents.
      utterances: number of utterances.
      weight: expected work, in seconds of audio or bytes of text.
      sha256: digest of the `.jsonl` file with the documents.
    """

    split: str
    number: int
    documents: int
    utterances: int
    weight: float
    sha256: str

    @property
    def name(self) -> str:
        """Name of the shard in the plan, such as `train-00003`."""
        return f"{self.split}-{self.number:05d}"

    @property
    def file(self) -> str:
        """Name of the file with the documents."""
        return f"{self.name}.jsonl"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The content of `plan.json`.

    Attributes:
      generation: 0 for the first plan of a data set, plus one for each append.
      settings: settings that determine the bytes of the shards, by name; see `Job.settings`.
      inputs: name, size and digest of each input file; see `planner.describe_inputs`.
      shards: shards in order, train first.
      counts: numbers of documents, utterances, rejected rows, repeated documents, and documents
        that the data set already contains.
      rejected_sha256: digest of `rejected.jsonl`.
    """

    generation: int
    settings: dict[str, Any]
    inputs: list[dict[str, Any]]
    shards: list[ShardPlan]
    counts: dict[str, int]
    rejected_sha256: str

    @property
    def digest(self) -> str:
        """SHA-256 of the plan as 64 hexadecimal digits; each `ShardResult` contains it."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    def save(self, folder: Path) -> None:
        """Writes `plan.json` into `folder`, atomically."""
        write_checked_json(folder / "plan.json", self._content())

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Reads `plan.json`; UserError if it is damaged or has another format version."""
        path = folder / "plan.json"
        try:
            value = parse_checked_json(path.read_bytes())
            version = value.pop("format_version")
            if version != FORMAT_VERSION:
                raise UserError(
                    f"{path} has format version {version}, this program reads {FORMAT_VERSION}: "
                    f"remove {folder} and run again"
                )
            return cls(**{**value, "shards": [ShardPlan(**shard) for shard in value["shards"]]})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: {error}: remove {folder} and run again") from None

    def check_same(
        self, settings: dict[str, Any], inputs: list[dict[str, Any]], folder: Path
    ) -> None:
        """Raises UserError with the first setting or input that differs from this plan."""
        first = f"give another --output, or remove {folder.parent.parent}"
        fix = f"remove {folder}" if self.generation else first
        for name in {**self.settings, **settings}:
            old, new = self.settings.get(name), settings.get(name)
            if old != new:
                raise UserError(
                    f"--{name} was {old} when the plan was made and is {new} now: {fix}"
                )
        for old_file, new_file in itertools.zip_longest(self.inputs, inputs):
            if old_file != new_file:
                name = (new_file or old_file)["name"]
                raise UserError(f"--input: {name} has changed since the plan was made: {fix}")


def plan_folder(dataset: Path, generation: int) -> Path:
    """Returns the folder of the plan of one generation."""
    return dataset / "plan" / f"{generation:04d}"


def remove_plan(folder: Path) -> None:
    """Removes a plan, `plan.json` first, so that an interrupted removal leaves no valid plan."""
    (folder / "plan.json").unlink(missing_ok=True)
    shutil.rmtree(folder)


def check_file(path: Path, sha256: str) -> None:
    """Raises UserError if a file of a plan cannot be read or does not have the digest `sha256`."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: remove {path.parent} and run again") from None
    if found != sha256:
        raise UserError(f"{path} does not match the plan: remove {path.parent} and run again")


def read_documents(folder: Path, shard: ShardPlan) -> Iterator[DocumentSource]:
    """Yields the documents of one shard in order; UserError if the file has changed."""
    path = folder / shard.file
    check_file(path, shard.sha256)
    with path.open("rb") as file:
        for line in file:
            value = json.loads(line)
            utterances = tuple(UtteranceSource(**utterance) for utterance in value["utterances"])
            yield DocumentSource(value["id"], utterances)
