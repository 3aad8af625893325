"""Makes the plan in two passes over the corpus: one weighs the documents, one assigns them to shards.

A shard is a run of documents in the order of the corpus; the runs have nearly equal expected work. A
compressed archive is read sequentially by one worker, so all its documents are in one shard.
"""

import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from soda_jax.files import write_atomic
from soda_jax.progress import track
from tokenize_pipeline.admission import Admission
from tokenize_pipeline.plan import (
    SPLITS,
    Plan,
    ShardPlan,
    documents_path,
    rejected_path,
    split_of,
)
from tokenize_pipeline.quarantine import QuarantineRow, json_lines
from tokenize_pipeline.readers import DocumentSource, Reader, Rejected, UtteranceSource
from tokenize_pipeline.sound import expected_seconds
from tokenize_pipeline.tar_stream import is_compressed

MIN_SHARDS = 8
SHARD_SECONDS = 36_000.0  # ten hours: minutes of work for a fast codec
SHARD_TEXT_BYTES = 64 * 2**20
FULL_DIGEST_BYTES = 256 * 2**20
DIGEST_PART_BYTES = 2**20


def describe_inputs(inputs: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns name, size in bytes and digest of each input file.

    The digest of a file over 256 MiB, usually an archive, covers its first, middle and last MiB: reading
    terabytes first would delay the job and detect hardly more changes.
    """
    described = []
    for path in inputs:
        size = path.stat().st_size
        digest = hashlib.sha256()
        with path.open("rb") as file:
            if size <= FULL_DIGEST_BYTES:
                digest = hashlib.file_digest(file, "sha256")
            else:
                for start in (0, size // 2, size - DIGEST_PART_BYTES):
                    file.seek(start)
                    digest.update(file.read(DIGEST_PART_BYTES))
        described.append({"name": path.name, "bytes": size, "sha256": digest.hexdigest()})
    return described


def speech_weight(data_root: Path) -> Callable[[DocumentSource], float]:
    """Returns a function that gives the expected seconds of audio of a document."""
    root = str(data_root)
    return lambda document: sum(expected_seconds(u, root) for u in document.utterances)


def text_bytes(utterance: UtteranceSource) -> float:
    """Returns the length of the text of an utterance in bytes."""
    return len(utterance.text.encode("utf-8", "surrogatepass"))


def text_weight(document: DocumentSource) -> float:
    """Returns the length of the texts of a document in bytes."""
    return sum(map(text_bytes, document.utterances))


def make_plan(
    folder: Path,
    generation: int,
    reader: Reader,
    inputs: Sequence[Path],
    settings: dict[str, Any],
    *,
    weigh: Callable[[DocumentSource], float],
    known: Container[int],
    first_numbers: dict[str, int],
) -> Plan:
    """Reads the corpus twice and writes the plan into `folder`.

    Args:
      folder: is replaced; `plan.json` is written last.
      generation: generation of the data set.
      reader: yields the documents.
      inputs: files that it reads.
      settings: recorded in the plan; "shards" and "validation_fraction" are used here.
      weigh: returns the expected work of a document.
      known: `document_hash` of the documents that the data set already has; they are skipped and counted.
      first_numbers: number of the first shard of each split.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    described = describe_inputs(inputs)
    fraction = settings["validation_fraction"]
    weights = {split: array("d") for split in SPLITS}
    runs = {split: Runs() for split in SPLITS}
    names = ("documents", "utterances", "rejected_rows", "repeated_in_input", "already_in_dataset")
    counts = Counter(dict.fromkeys(names, 0))
    rejected = []
    admission = Admission(reader, inputs, known)
    for item in track(admission.first_pass(counts), "planning, first pass"):
        if isinstance(item, Rejected):
            rejected.append(_quarantine_row(item))
        else:
            split = split_of(item.id, fraction)
            # A minimum keeps documents of unknown length from collecting in one shard.
            weights[split].append(max(weigh(item), 0.1))
            runs[split].add(item)
            counts["documents"] += 1
            counts["utterances"] += len(item.utterances)
    totals = {split: shard_count(weights[split], split, settings) for split in SPLITS}
    assigned = {
        split: assign_shards(weights[split], totals[split], runs[split].starts())
        for split in SPLITS
    }
    writers = {s: _ShardFiles(folder, s, first_numbers[s]) for s in SPLITS}
    second_pass = admission.second_pass(counts)
    for item in track(second_pass, "planning, second pass", counts["documents"]):
        if isinstance(item, Rejected):
            rejected.append(_quarantine_row(item))
        else:
            split = split_of(item.id, fraction)
            writers[split].write(item, *next(assigned[split]))
    counts["rejected_rows"] = len(rejected)
    rejected_content = json_lines(rejected)
    write_atomic(rejected_path(folder), rejected_content)
    shards = [shard for split in SPLITS for shard in writers[split].close()]
    digest = hashlib.sha256(rejected_content).hexdigest()
    plan = Plan(generation, settings, described, shards, dict(counts), digest)
    plan.save(folder)
    return plan


def _quarantine_row(item: Rejected) -> QuarantineRow:
    return QuarantineRow(item.document, None, None, item.where, item.reason, item.message)


def shard_count(weights: Sequence[float], split: str, settings: dict[str, Any]) -> int:
    """Returns the number of shards of a split: from --shards, or by the amount of work."""
    if settings["shards"]:
        share = settings["validation_fraction"] if split == "validation" else 1.0
        wanted = round(settings["shards"] * share)
    else:
        unit = SHARD_SECONDS if settings["kind"] == "speech" else SHARD_TEXT_BYTES
        wanted = int(sum(weights) // unit) + 1
        wanted = max(wanted, MIN_SHARDS) if split == "train" else wanted
    return max(1, min(wanted, len(weights)))


def assign_shards(
    weights: Sequence[float], shards: int, starts: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """Yields (shard, weight) of each document, such that shards have nearly equal weights.

    Args:
      weights: positive weight of each document.
      shards: largest number of shards.
      starts: 1 if a shard may begin with the document, 0 if it must be in the shard of the previous one.
    """
    total, before, first = sum(weights), 0.0, 0
    while first < len(weights):
        last = first + 1
        while last < len(weights) and not starts[last]:
            last += 1
        together = sum(weights[first:last])
        shard = min(int((before + together / 2) / total * shards), shards - 1)
        for number in range(first, last):
            yield shard, weights[number]
        before, first = before + together, last


class Runs:
    """Finds the documents of a split that share a compressed archive."""

    def __init__(self) -> None:
        """Starts without documents."""
        self._count = 0
        self._spans: dict[str, tuple[int, int]] = {}  # first and last document of each archive

    def add(self, document: DocumentSource) -> None:
        """Adds the next document."""
        for utterance in document.utterances:
            audio = utterance.audio
            if utterance.member is not None and audio is not None and is_compressed(audio):
                self._spans[audio] = (self._spans.get(audio, (self._count, 0))[0], self._count)
        self._count += 1

    def starts(self) -> bytearray:
        """Returns for each document 1 if a shard may begin with it, else 0."""
        free = bytearray(b"\x01") * self._count
        for first, last in self._spans.values():
            free[first + 1 : last + 1] = bytes(last - first)
        return free


def document_line(document: DocumentSource) -> str:
    """Returns a document as a line of a plan, in ASCII: invalid UTF-8 is escaped for the worker to reject."""
    utterances = [
        {name: value for name, value in vars(utterance).items() if value is not None}
        for utterance in document.utterances
    ]
    return json.dumps({"id": document.id, "utterances": utterances}) + "\n"


class _ShardFiles:
    """Writes the `.jsonl` files of one split in order, with consecutive numbers."""

    def __init__(self, folder: Path, split: str, first: int):
        self._folder, self._split, self._first = folder, split, first
        self._shards: list[ShardPlan] = []
        self._current: int | None = None
        self._lines: list[str] = []
        self._utterances, self._weight = 0, 0.0

    def write(self, document: DocumentSource, shard: int, weight: float) -> None:
        if shard != self._current:
            self._flush()
            self._current = shard
        self._lines.append(document_line(document))
        self._utterances += len(document.utterances)
        self._weight += weight

    def _flush(self) -> None:
        if not self._lines:
            return
        content = "".join(self._lines).encode("ascii")
        digest = hashlib.sha256(content).hexdigest()
        number = self._first + len(self._shards)
        shard = ShardPlan(
            self._split,
            number,
            len(self._lines),
            self._utterances,
            round(self._weight, 3),
            digest,
        )
        write_atomic(documents_path(self._folder, shard), content)
        self._shards.append(shard)
        self._lines, self._utterances, self._weight = [], 0, 0.0

    def close(self) -> list[ShardPlan]:
        self._flush()
        return self._shards
