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
from tokenize_pipeline.tar_stream import TarStream, is_compressed, member_name
from tokenize_pipeline.worker import speech_encoder, tokenize_shard

_BUDGET_SECONDS = 4.0
_LONGEST_SECONDS = 30.0  # of one utterance: an hour would take a slow codec many minutes
_FIRST_SECONDS = 4.0  # expected audio of the first batch, which also loads what the others need
_FIRST_BYTES = 16_384.0
_MOST_UTTERANCES = 1024  # of one batch
_PASS_SECONDS = 4.0  # to look for the first utterances in compressed archives, in all

_Item = tuple[DocumentSource, float]  # one utterance, with its expected work


@dataclasses.dataclass(frozen=True)
class MeasuredRate:
    """What became of the first utterances of a corpus.

    Attributes:
      rate: expected seconds of audio (or bytes of text) done in a second; 0 if nothing was usable.
      tried: how many utterances were read, or looked for.
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

    Of a compressed archive they are taken in its order, and it is gone through once, as in the job. The
    rate includes passing over what lies between them.

    Args:
      request: the job.
      plan: its plan, which lies in `plan_folder(folder, …)`.
      folder: an empty data set but for the plan; shards are written to it.
    """
    deep: list[str] = []
    source = _utterances(request, plan, plan_folder(folder, plan.generation))
    speech = request.reader.KIND == "speech"
    if speech:
        met = _as_archives_give_them(source, str(request.root), deep)
        source = (_beginning(item, str(request.root)) for item in met)
    scratch = folder / "first"
    job = request.job(scratch, plan)
    encoder = speech_encoder(job, lambda places: None) if speech else None
    request.tokenizer.save(scratch / "tokenizer")
    size = _FIRST_SECONDS if speech else _FIRST_BYTES
    done: list[tuple[float, int, float]] = []  # of each batch: expected work, frames, seconds
    bad: list[QuarantineRow] = []
    tried = 0
    # The first batch also loads libraries, or compiles a codec: it counts only if it is all there is.
    while sum(took for _, _, took in done[1:]) < _BUDGET_SECONDS and (batch := _take(source, size)):
        shard = _write_shard(plan_folder(scratch, plan.generation), [item for item, _ in batch])
        began = time.perf_counter()
        result = tokenize_shard(job, shard, encoder)
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
        tried or len(deep),
        expected,
        frames / codec["frame_rate"] if codec else 0.0,
        elapsed,
        count_by_reason(bad),
        bad[0].message if bad else deep[0] if deep else "",
    )


def _utterances(request: Request, plan: Plan, folder: Path) -> Iterator[_Item]:
    """Each utterance of the plan as a document of its own, with its expected work."""
    for shard in plan.shards:
        for document in read_documents(folder, shard):
            for number, utterance in enumerate(document.utterances):
                alone = DocumentSource(f"{document.id}/{number}", (utterance,))
                yield alone, request.weigh(alone)


def _as_archives_give_them(
    source: Iterator[_Item], data_root: str, deep: list[str]
) -> Iterator[_Item]:
    """The utterances; of the first ones, those in a compressed archive in its order.

    What lies so deep that it would take long to get there is left out, with a message in `deep` for each.
    Of the further ones none in a compressed archive is taken: it may have been passed.
    """
    packed: dict[str, dict[str, list[_Item]]] = {}  # by archive and member
    for item in islice(source, _MOST_UTTERANCES):
        (utterance,) = item[0].utterances
        if (path := _compressed(utterance, data_root)) is None:
            yield item
        else:
            name = member_name(utterance.member or "")
            packed.setdefault(path, {}).setdefault(name, []).append(item)
    spent = [0.0]
    for path, items in packed.items():
        yield from _given(path, items, spent)
        cause = f"{path}: no utterance was met in the first {_PASS_SECONDS:g} s of reading it"
        deep += [cause for same in items.values() for _ in same]
    yield from (item for item in source if not _compressed(item[0].utterances[0], data_root))


def _compressed(utterance: UtteranceSource, data_root: str) -> str | None:
    """The path of the compressed archive that holds the sound, if it is in one."""
    if utterance.member is None or not is_compressed(utterance.audio or ""):
        return None
    try:
        return resolve(utterance, data_root)
    except BadInputError:  # the encoder will say so
        return None


def _given(path: str, items: dict[str, list[_Item]], spent: list[float]) -> Iterator[_Item]:
    """Yields `items` (by member) as they are met, and the others if the archive has ended.

    Takes out of `items` what it yields; `spent` counts the seconds of all archives.
    """
    stream = None
    try:
        while items:
            if spent[0] > _PASS_SECONDS:
                return
            began = time.perf_counter()
            stream = stream or TarStream(path)
            member = stream.next()
            spent[0] += time.perf_counter() - began
            if member is None:
                break
            yield from items.pop(member.name, ())
    except BadInputError:  # the encoder meets it too
        pass
    finally:
        if stream is not None:
            stream.close()
    while items:
        yield from items.pop(next(iter(items)))


def _beginning(item: _Item, data_root: str) -> _Item:
    """The first half minute of a long utterance, and the part of its weight that falls on it."""
    document, weight = item
    if weight <= _LONGEST_SECONDS:
        return item
    (utterance,) = document.utterances
    start, seconds = utterance.start or 0.0, weight
    if utterance.end is None:  # then the weight is a guess
        try:
            found = sound_seconds(resolve(utterance, data_root)) if not utterance.member else None
        except BadInputError:
            found = None
        seconds = (found or 0.0) - start
    if seconds <= _LONGEST_SECONDS:
        return item
    cut = dataclasses.replace(utterance, end=start + _LONGEST_SECONDS)
    return dataclasses.replace(document, utterances=(cut,)), weight * _LONGEST_SECONDS / seconds


def _take(source: Iterator[_Item], size: float) -> list[_Item]:
    """The next utterances, until they have `size` expected seconds or bytes."""
    batch: list[_Item] = []
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
