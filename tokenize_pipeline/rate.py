"""How fast this machine tokenizes a corpus: its first utterances are done in earnest, for a few seconds."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from soda_jax.codecs.audio import sound_seconds
from soda_jax.files import write_atomic
from tokenize_pipeline.plan import Plan, ShardPlan, plan_folder, read_documents
from tokenize_pipeline.quarantine import BadInputError, QuarantineRow, count_by_reason
from tokenize_pipeline.readers import DocumentSource, UtteranceSource
from tokenize_pipeline.request import Request
from tokenize_pipeline.sound import resolve
from tokenize_pipeline.worker import tokenize_shard

_BUDGET_SECONDS = 4.0
_LONGEST_SECONDS = 30.0  # of one utterance: an hour would take a slow codec many minutes
_FIRST_SECONDS = 4.0  # expected audio of the first batch, which also loads what the others need
_FIRST_BYTES = 16_384.0
_MOST_UTTERANCES = 1024  # of one batch


@dataclasses.dataclass(frozen=True)
class MeasuredRate:
    """What became of the first utterances of a corpus.

    Attributes:
      rate: expected seconds of audio (or bytes of text) done in a second; 0 if nothing was usable.
      tried: how many utterances were read.
      expected: seconds of audio (or bytes of text) that was expected of those that were timed.
      found: seconds of audio that these turned out to have; 0 for text.
      elapsed: seconds that these took.
      bad: how many could not be used, by reason.
      message: what was wrong with the first of them.
    """

    rate: float
    tried: int
    expected: float
    found: float
    elapsed: float
    bad: dict[str, int]
    message: str


def measure_rate(request: Request, plan: Plan, folder: Path) -> MeasuredRate:
    """Tokenizes the first utterances of a plan as a worker does, into a folder to be thrown away.

    Args:
      request: the job.
      plan: its plan, which lies in `plan_folder(folder, …)`.
      folder: an empty data set but for the plan; shards are written to it.
    """
    source = _utterances(request, plan, plan_folder(folder, plan.generation))
    scratch = folder / "first"
    request.tokenizer.save(scratch / "tokenizer")
    size = _FIRST_SECONDS if request.reader.KIND == "speech" else _FIRST_BYTES
    done: list[tuple[float, int, float]] = []  # of each batch: expected work, frames, seconds
    bad: list[QuarantineRow] = []
    tried = 0
    # The first batch also loads libraries, or compiles a codec: it counts only if it is all there is.
    while sum(took for _, _, took in done[1:]) < _BUDGET_SECONDS and (batch := _take(source, size)):
        shard = _write_shard(plan_folder(scratch, plan.generation), [item for item, _ in batch])
        began = time.perf_counter()
        result = tokenize_shard(request.job(scratch, plan), shard)
        took = time.perf_counter() - began
        tried += len(batch)
        bad += result.quarantine
        if result.info is not None:
            done.append((sum(weight for _, weight in batch), result.info.frames, took))
            size *= 2 if took < _BUDGET_SECONDS / 4 else 1
        elif not done and tried >= _MOST_UTTERANCES:
            break  # files that are not there cost no time, and there may be millions
    counted = done[1:] or done or [(0.0, 0, 0.0)]
    expected, frames, elapsed = (sum(column) for column in zip(*counted, strict=True))
    codec = request.before.codec
    return MeasuredRate(
        expected / elapsed if done else 0.0,
        tried,
        expected,
        frames / codec["frame_rate"] if codec else 0.0,
        elapsed,
        count_by_reason(bad),
        bad[0].message if bad else "",
    )


def _utterances(
    request: Request, plan: Plan, folder: Path
) -> Iterator[tuple[DocumentSource, float]]:
    """Each utterance of the plan as a document of its own, with its expected work."""
    for shard in plan.shards:
        for document in read_documents(folder, shard):
            for number, utterance in enumerate(document.utterances):
                weight = request.weigh(DocumentSource(document.id, (utterance,)))
                if request.reader.KIND == "speech" and weight > _LONGEST_SECONDS:
                    utterance, weight = _beginning(utterance, weight, str(request.root))
                yield DocumentSource(f"{document.id}/{number}", (utterance,)), weight


def _beginning(
    utterance: UtteranceSource, weight: float, data_root: str
) -> tuple[UtteranceSource, float]:
    """The first half minute of a long utterance, and the part of its weight that falls on it."""
    start, seconds = utterance.start or 0.0, weight
    if utterance.end is None:  # then the weight is a guess
        try:
            found = sound_seconds(resolve(utterance, data_root)) if not utterance.member else None
        except BadInputError:
            found = None
        seconds = (found or 0.0) - start
    if seconds <= _LONGEST_SECONDS:
        return utterance, weight
    cut = dataclasses.replace(utterance, end=start + _LONGEST_SECONDS)
    return cut, weight * _LONGEST_SECONDS / seconds


def _take(
    source: Iterator[tuple[DocumentSource, float]], size: float
) -> list[tuple[DocumentSource, float]]:
    """The next utterances, until they have `size` expected seconds or bytes."""
    batch: list[tuple[DocumentSource, float]] = []
    total = 0.0
    for item in islice(source, _MOST_UTTERANCES):
        batch.append(item)
        total += item[1]
        if total >= size:
            break
    return batch


def _write_shard(folder: Path, documents: Sequence[DocumentSource]) -> ShardPlan:
    """A shard that no plan knows, as `read_documents` wants it."""
    rows = ({"id": d.id, "utterances": [vars(u) for u in d.utterances]} for d in documents)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")
    digest = hashlib.sha256(content).hexdigest()
    shard = ShardPlan("train", 0, len(documents), len(documents), 0.0, digest)
    write_atomic(folder / f"{shard.name}.jsonl", content)
    return shard
