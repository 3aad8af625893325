"""The plan: which document goes to which split, shard and place, fixed before any work is done.

    DATASET/plan/0000/plan.json             settings, digests of the inputs, shards, counts
    DATASET/plan/0000/train-00003.jsonl     the documents of one shard, in their order
    DATASET/plan/0000/rejected.jsonl        rows of the input that describe no utterance

There is one numbered folder per generation of the data set: 0000 the first, one more for each
`--append`. `plan.json` is written last: without it the folder counts as absent. The plan is a pure
function of the inputs and settings: no clock, no host name, no Python `hash()`.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.files import write_json
from tokenize_pipeline.readers import DocumentSource, UtteranceSource

FORMAT_VERSION = 1
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """One shard of one split.

    Attributes:
      split: "train" or "validation".
      number: number of the shard in its split, over all generations.
      documents: how many documents it is given.
      utterances: how many utterances they have.
      weight: expected work: seconds of audio, or bytes of text.
      sha256: digest of its `.jsonl` file.
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `plan.json` holds.

    Attributes:
      generation: 0 for the first plan of a data set, one more for each append.
      settings: everything that decides the bytes of the shards, by the name of the option.
      inputs: name, size and digest of each input file; see `planner.describe_inputs`.
      shards: in order, train first.
      counts: documents, utterances, rejected rows, repeated and already known documents.
    """

    generation: int
    settings: dict[str, Any]
    inputs: list[dict[str, Any]]
    shards: list[ShardPlan]
    counts: dict[str, int]

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, 64 hexadecimal digits; the results of shards name it."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    def save(self, folder: Path) -> None:
        """Writes `plan.json` into `folder`, atomically."""
        write_json(folder / "plan.json", {**self._content(), "digest": self.digest})

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Reads `plan.json`; UserError if it is damaged or of another version."""
        path = folder / "plan.json"
        try:
            value = json.loads(path.read_text("utf-8"))
            version, digest = value.pop("format_version"), value.pop("digest")
            if version != FORMAT_VERSION:
                raise UserError(f"{path} has format version {version}, this is {FORMAT_VERSION}")
            shards = [ShardPlan(**shard) for shard in value.pop("shards")]
            plan = cls(shards=shards, **value)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): remove {folder} and run again") from None
        if plan.digest != digest:
            raise UserError(f"{path} does not match its digest: remove {folder} and run again")
        return plan

    def check_same(
        self, settings: dict[str, Any], inputs: list[dict[str, Any]], folder: Path
    ) -> None:
        """UserError that names the first setting or input in which this plan differs."""
        first = f"give another --output, or remove {folder.parent.parent}"
        mend = f"remove {folder}" if self.generation else first
        for name in {**self.settings, **settings}:
            old, new = self.settings.get(name), settings.get(name)
            if old != new:
                raise UserError(
                    f"--{name} was {old} when the plan was made and is {new} now: {mend}"
                )
        if inputs != self.inputs:
            pairs = itertools.zip_longest(self.inputs, inputs, fillvalue={"name": "absent"})
            old_file, new_file = next((a, b) for a, b in pairs if a != b)
            name = new_file["name"] if "sha256" in new_file else old_file["name"]
            raise UserError(f"--input: {name} has changed since the plan was made: {mend}")


def plan_folder(dataset: Path, generation: int) -> Path:
    """Folder of the plan of one generation."""
    return dataset / "plan" / f"{generation:04d}"


def split_of(document_id: str, validation_fraction: float) -> str:
    """The split of a document, by a hash of its id: the same wherever and whenever it is read."""
    value = int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8], "big")
    return "validation" if value < validation_fraction * 2**64 else "train"


def read_documents(folder: Path, shard: ShardPlan) -> Iterator[DocumentSource]:
    """Yields the documents of one shard, in their order; UserError if the file was changed."""
    path = folder / f"{shard.name}.jsonl"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            raise UserError(f"{path} does not match the plan: remove {folder} and run again")
        file.seek(0)
        for line in file:
            value = json.loads(line)
            utterances = tuple(UtteranceSource(**utterance) for utterance in value["utterances"])
            yield DocumentSource(value["id"], utterances)
