"""Makes the plan of a tokenization job in two passes over the corpus.

The first pass computes the expected work of each document; the second writes the documents of each
shard into the plan.

A shard contains consecutive documents of a split; the shards of a split have nearly equal expected
work. A compressed archive can only be read sequentially, so all its documents in a split are in one
shard.

Each document id is used once. The first pass finds repeated ids, and the second pass compares
contents only for documents with these ids. So the planner needs memory for a hash and a weight per
document, not for a digest of each content.
"""

import functools
import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from soda_jax.data.format.manifest import SPLITS
from soda_jax.data.format.shards import document_hash
from soda_jax.files import write_atomic
from soda_jax.progress import track
from tokenize_pipeline.plan import REJECTED, Plan, ShardPlan
from tokenize_pipeline.quarantine import QuarantineRow, json_lines
from tokenize_pipeline.readers import DocumentSource, Reader, Rejected, UtteranceSource
from tokenize_pipeline.readers._rows import repeat_error
from tokenize_pipeline.sound import expected_seconds
from tokenize_pipeline.tar_stream import is_compressed

MAX_ID_BYTES = 65_535
MIN_SHARDS = 8
SHARD_SECONDS = 36_000.0  # ten hours, which a fast codec encodes in minutes
SHARD_TEXT_BYTES = 64 * 2**20
FULL_DIGEST_BYTES = 256 * 2**20
DIGEST_PART_BYTES = 2**20


def describe_inputs(inputs: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns name, size in bytes and digest of each input file.

    The digest of a file larger than 256 MiB covers only the first, middle and last MiB, because
    reading terabytes of archives would delay the job.
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


def work_of(kind: str, data_root: str) -> Callable[[UtteranceSource], float]:
    """Returns a function that computes the expected work of an utterance.

    The unit is seconds of audio if `kind` is "speech", and bytes of text if it is "text".
    """
    if kind == "speech":
        return functools.partial(expected_seconds, data_root=data_root)
    return lambda utterance: len(utterance.text.encode("utf-8", "surrogatepass"))


def split_of(document_id: str, validation_fraction: float) -> str:
    """Returns the split of a document, which depends only on its id and `validation_fraction`."""
    value = int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8], "big")
    return "validation" if value < validation_fraction * 2**64 else "train"


def make_plan(
    folder: Path,
    generation: int,
    reader: Reader,
    inputs: Sequence[Path],
    settings: dict[str, Any],
    *,
    data_root: str,
    known: Container[int],
    first_numbers: dict[str, int],
) -> Plan:
    """Reads the corpus twice and writes the plan into `folder`.

    Args:
      folder: folder of the plan, which is replaced; `plan.json` is written last.
      generation: generation of the data set.
      reader: yields the documents of `inputs`.
      inputs: files of the corpus.
      settings: settings to record in the plan. The planner itself uses "kind", "shards" and
        "validation_fraction".
      data_root: absolute folder that audio paths are relative to.
      known: `document_hash` of documents that the data set already contains; they are skipped.
      first_numbers: number of the first new shard of each split.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    described = describe_inputs(inputs)
    work = work_of(settings["kind"], data_root)
    fraction = settings["validation_fraction"]
    splits = {split: SplitPlan(folder, split, first_numbers[split]) for split in SPLITS}
    names = ("documents", "utterances", "rejected_rows", "repeated_in_input", "already_in_dataset")
    counts = Counter(dict.fromkeys(names, 0))
    rejected: list[Rejected] = []
    admission = Admission(reader, inputs, known)
    for item in track(admission.first_pass(counts), "planning, first pass"):
        if isinstance(item, Rejected):
            rejected.append(item)
        else:
            splits[split_of(item.id, fraction)].weigh(item, sum(map(work, item.utterances)))
            counts["documents"] += 1
            counts["utterances"] += len(item.utterances)
    for plan in splits.values():
        plan.assign(settings)
    second_pass = admission.second_pass(counts)
    for item in track(second_pass, "planning, second pass", counts["documents"]):
        if isinstance(item, Rejected):
            rejected.append(item)
        else:
            splits[split_of(item.id, fraction)].write(item)
    counts["rejected_rows"] = len(rejected)
    rows = json_lines(
        QuarantineRow(item.document, None, None, item.where, item.reason, item.message)
        for item in rejected
    )
    write_atomic(folder / REJECTED, rows)
    shards = [shard for plan in splits.values() for shard in plan.close()]
    digest = hashlib.sha256(rows).hexdigest()
    made = Plan(generation, settings, described, shards, dict(counts), digest)
    made.save(folder)
    return made


class Admission:
    """Selects the documents of a corpus for a plan."""

    def __init__(self, reader: Reader, inputs: Sequence[Path], known: Container[int]):
        """Stores the inputs; `known` contains the `document_hash` of documents to skip."""
        self._reader, self._inputs, self._known = reader, inputs, known
        self._repeated: set[int] = set()

    def first_pass(self, counts: Counter[str]) -> Iterator[DocumentSource | Rejected]:
        """Yields the documents and rejected rows, without repeated and known documents.

        Adds the number of known documents to `counts` as `already_in_dataset`.
        """
        seen: set[int] = set()
        for item in self._reader.read(self._inputs):
            if isinstance(item, DocumentSource):
                if len(item.id.encode()) > MAX_ID_BYTES:
                    message = f"the document id has more than {MAX_ID_BYTES} bytes: {item.id[:40]}…"
                    yield Rejected("malformed_row", message, item.utterances[0].where)
                    continue
                key = document_hash(item.id)
                if key in self._known:
                    counts["already_in_dataset"] += 1
                    continue
                if key in seen:
                    self._repeated.add(key)
                    continue
                seen.add(key)
            yield item

    def second_pass(self, counts: Counter[str]) -> Iterator[DocumentSource | Rejected]:
        """Yields the same documents as `first_pass`, and a rejected row for each repeated document.

        Exact repeats have the reason `duplicate` and are counted as `repeated_in_input`. In a text
        corpus, they are only counted, because repeats are common: the id of a text without one is a
        hash of its content.
        """
        firsts: dict[int, tuple[bytes, str]] = {}
        for item in self._reader.read(self._inputs):
            if not isinstance(item, DocumentSource) or len(item.id.encode()) > MAX_ID_BYTES:
                continue
            key = document_hash(item.id)
            if key in self._known:
                continue
            if key in self._repeated:
                content, where = _content(item), item.utterances[0].where
                if key in firsts:
                    same = firsts[key][0] == content
                    counts["repeated_in_input"] += same
                    if not same or self._reader.KIND == "speech":
                        error = repeat_error(f"document {item.id}", firsts[key][1], same=same)
                        yield Rejected(error.reason, str(error), where, item.id)
                    continue
                firsts[key] = (content, where)
            yield item


def _content(document: DocumentSource) -> bytes:
    """Returns a digest of texts and times; it excludes paths, which may differ between copies."""
    content = [(u.text.strip(), u.start, u.end) for u in document.utterances]
    return hashlib.sha256(json.dumps(content).encode()).digest()


def shard_count(weights: Sequence[float], split: str, settings: dict[str, Any]) -> int:
    """Returns the number of shards of a split, from --shards or from the amount of work."""
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
      shards: maximum number of shards.
      starts: for each document, 1 if a shard may begin with it, 0 if it must be in the
        shard of the previous document.
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


class ShardLines:
    """Collects the documents of one shard and writes its `.jsonl` file."""

    def __init__(self) -> None:
        """Creates an empty shard."""
        self._lines: list[str] = []
        self._utterances, self._weight = 0, 0.0

    def add(self, document: DocumentSource, weight: float) -> None:
        """Adds the next document as a line of ASCII.

        Bytes that are not UTF-8 are stored as escaped surrogates; the worker rejects such texts.
        """
        utterances = [
            {name: value for name, value in vars(utterance).items() if value is not None}
            for utterance in document.utterances
        ]
        self._lines.append(json.dumps({"id": document.id, "utterances": utterances}) + "\n")
        self._utterances += len(document.utterances)
        self._weight += weight

    def write(self, folder: Path, split: str, number: int) -> ShardPlan:
        """Writes the file of shard `number` of `split` into the folder of the plan."""
        content = "".join(self._lines).encode("ascii")
        digest = hashlib.sha256(content).hexdigest()
        weight = round(self._weight, 3)
        shard = ShardPlan(split, number, len(self._lines), self._utterances, weight, digest)
        write_atomic(folder / shard.file, content)
        return shard


class SplitPlan:
    """Collects the weights of a split in the first pass and writes its shards in the second one."""

    def __init__(self, folder: Path, split: str, first_number: int):
        """Creates an empty split; its shards are numbered from `first_number`."""
        self._folder, self._split, self._first = folder, split, first_number
        self._weights = array("d")
        self._spans: dict[str, tuple[int, int]] = {}  # archive -> first and last document index
        self._shards: list[ShardPlan] = []
        self._current: tuple[int, ShardLines] | None = None

    def weigh(self, document: DocumentSource, work: float) -> None:
        """Adds the next document of the first pass and its expected work."""
        number = len(self._weights)
        for utterance in document.utterances:
            audio = utterance.audio
            if utterance.member is not None and audio is not None and is_compressed(audio):
                self._spans[audio] = (self._spans.get(audio, (number, 0))[0], number)
        # Without a minimum, all documents of unknown length would be in one shard.
        self._weights.append(max(work, 0.1))

    def starts(self) -> bytearray:
        """Returns 1 for each document that a shard may begin with, else 0.

        A shard must not begin within the documents of a compressed archive.
        """
        free = bytearray(b"\x01") * len(self._weights)
        for first, last in self._spans.values():
            free[first + 1 : last + 1] = bytes(last - first)
        return free

    def assign(self, settings: dict[str, Any]) -> None:
        """Assigns each document to a shard; call it between the passes."""
        total = shard_count(self._weights, self._split, settings)
        self._assigned = assign_shards(self._weights, total, self.starts())

    def write(self, document: DocumentSource) -> None:
        """Adds the next document of the second pass; writes the current shard if it is complete."""
        shard, weight = next(self._assigned)
        if self._current is None or self._current[0] != shard:
            self.close()
            self._current = shard, ShardLines()
        self._current[1].add(document, weight)

    def close(self) -> list[ShardPlan]:
        """Writes the current shard, if any, and returns all shards written so far."""
        if self._current is not None:
            number = self._first + len(self._shards)
            self._shards.append(self._current[1].write(self._folder, self._split, number))
        return self._shards
