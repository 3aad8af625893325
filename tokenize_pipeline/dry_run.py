"""Estimates what a job would write and how long it would take, without writing the data set.

The plan is made in a temporary folder, texts are tokenized (all, or a sample), and one shard of the first
utterances is tokenized and timed.
"""

import contextlib
import dataclasses
import hashlib
import math
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from soda_jax.codecs.audio import sound_seconds
from soda_jax.data.format.bits import packing
from soda_jax.data.format.manifest import Manifest, tokens_by_view
from soda_jax.data.format.splitting import RECORD_TOKENS
from soda_jax.errors import UserError
from soda_jax.files import write_atomic
from soda_jax.progress import track
from soda_jax.tokens.text import TextTokenizer
from tokenize_pipeline.estimate import Estimate, SplitEstimate, TimedShard
from tokenize_pipeline.options import TokenizeOptions
from tokenize_pipeline.plan import (
    SPLITS,
    Plan,
    ShardPlan,
    documents_path,
    plan_folder,
    read_documents,
    rejected_path,
)
from tokenize_pipeline.planner import document_line
from tokenize_pipeline.quarantine import BadInputError, QuarantineRow, count_by_reason, read_rows
from tokenize_pipeline.readers import DocumentSource, texts
from tokenize_pipeline.request import Request, read_request
from tokenize_pipeline.sound import resolve
from tokenize_pipeline.worker import speech_encoder, tokenize_shard

SAMPLE_TEXTS = 5_000
SAMPLE_BYTES = 16 * 2**20
_TIMED_SECONDS = 4.0  # in all timed shards
_FIRST_WORK = {"speech": 4.0, "text": 16_384.0}  # seconds or bytes of the first shard
_LONGEST_SECONDS = 30.0  # of an utterance in the timed shard
_MOST_UTTERANCES = 1024  # in one timed shard
# Bytes of a record besides its content: header and checksum, an id of about 20 bytes, its chunk.
_RECORD_BYTES = 24 + 20 + 55
_UTTERANCE_BYTES = 6
_BLOCK_BYTES = 65_536  # an ArrayRecord file consists of whole blocks, and one more for its footer
# Bytes of the index: a row per record, a hash per document, the frame of the .npz file.
_INDEX_BYTES = {"records": 21, "documents": 8, "shards": 1_750}
_COMPRESSED_TEXT_BYTES = 32_768  # compressed together, about the text of a record


@dataclasses.dataclass
class _TextCounts:
    """Counts over the texts of a split; lengths in bytes of UTF-8."""

    texts: int = 0
    length: int = 0
    sampled: int = 0
    sampled_length: int = 0
    tokens: int = 0  # of the sampled texts
    uncompressed: int = 0
    compressed: int = 0

    def __add__(self, other: "_TextCounts") -> "_TextCounts":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return _TextCounts(*(a + b for a, b in pairs))


def dry_run(options: TokenizeOptions, rate: float | None = None) -> Estimate:
    """Estimates the job of `options`; writes nothing to `options.output`.

    Args:
      options: options of the job.
      rate: seconds of audio (or bytes of text) per second; None to time a shard.

    Raises:
      UserError: as `tokenize` for wrong settings and inputs; for a rate that is not positive.
    """
    if rate is not None and not rate > 0:
        raise UserError(f"--rate={rate:g} must be positive")
    request = read_request(options)
    with tempfile.TemporaryDirectory(prefix="soda-dry-run-") as name:
        folder = plan_folder(Path(name), request.generation)
        plan = request.make_plan(folder)
        if not plan.shards and not plan.counts["rejected_rows"] and not request.generation:
            raise UserError(f"--input={options.input} contains no document")
        counts = _count_texts(plan, folder, request.tokenizer)
        timed = None if rate else time_shard(request, plan, Path(name))
        rejected = count_by_reason(read_rows(rejected_path(folder)))
    total = counts["train"] + counts["validation"]
    splits = {
        split: _estimate_split(
            [shard for shard in plan.shards if shard.split == split],
            # A sample may be too small for each split, so both use the ratio of the whole corpus.
            found.tokens
            if total.sampled == total.texts
            else round(found.length * total.tokens / max(total.sampled_length, 1)),
            found.length * total.compressed / max(total.uncompressed, 1),
            request.before,
        )
        for split, found in counts.items()
    }
    return Estimate(
        request.reader.KIND,
        splits,
        plan.counts,
        rejected,
        total.texts,
        total.sampled,
        rate or (timed.rate if timed else 0.0),
        timed,
    )


def _count_texts(plan: Plan, folder: Path, tokenizer: TextTokenizer) -> dict[str, _TextCounts]:
    """Counts the texts of each split; tokenizes every n-th text of a large corpus."""
    utterances = sum(shard.utterances for shard in plan.shards)
    step = -(-utterances // SAMPLE_TEXTS)
    if plan.settings["kind"] == "text":
        step = max(step, int(sum(shard.weight for shard in plan.shards) / SAMPLE_BYTES) + 1)
    counts = {split: _TextCounts() for split in SPLITS}
    number = 0
    for shard in track(plan.shards, "reading texts, shards"):
        found = counts[shard.split]
        for document in read_documents(folder, shard):
            document_texts = list(texts([document]))
            sample = document_texts[-number % step :: step]
            number += len(document_texts)
            found.texts += len(document_texts)
            found.length += sum(len(text.encode()) for text in document_texts)
            for text in sample:
                found.sampled += 1
                found.sampled_length += len(text.encode())
                with contextlib.suppress(UserError):  # the job will quarantine it
                    found.tokens += len(tokenizer.encode(text))
            if sample:
                joined = "".join(document_texts).encode()[:_COMPRESSED_TEXT_BYTES]
                found.uncompressed += len(joined)
                found.compressed += len(zlib.compress(joined, 9))
    return counts


def _estimate_split(
    shards: Sequence[ShardPlan], text_tokens: int, text_bytes: float, manifest: Manifest
) -> SplitEstimate:
    """Returns the estimate of a split of these shards; `text_bytes` is the compressed length."""
    layout, codec = manifest.layout, manifest.codec
    work = sum(shard.weight for shard in shards)
    documents = sum(shard.documents for shard in shards)
    utterances = sum(shard.utterances for shard in shards)
    # The last frame of an utterance is padded: half a frame on average.
    frames = round(work * codec["frame_rate"] + utterances / 2) if codec else 0
    totals = {
        "documents": documents,
        "utterances": utterances,
        "text_tokens": text_tokens,
        "frames": frames,
    }
    tokens = tokens_by_view(manifest.kind, layout.codebooks, totals)
    bits = text_tokens * packing((layout.text_size,)).row_bits
    bits += frames * packing(layout.codebook_sizes).row_bits if frames else 0
    records = documents + max(tokens.values()) // RECORD_TOKENS
    content = bits / 8 + text_bytes + records * _RECORD_BYTES + utterances * _UTTERANCE_BYTES
    blocks = sum(math.ceil(content / len(shards) / _BLOCK_BYTES) + 1 for _ in shards)
    sizes = {"records": records, "documents": documents, "shards": len(shards)}
    index = sum(size * sizes[name] for name, size in _INDEX_BYTES.items())
    return SplitEstimate(len(shards), work, totals, tokens, blocks * _BLOCK_BYTES + index)


def time_shard(request: Request, plan: Plan, folder: Path) -> TimedShard:
    """Tokenizes the first utterances of a plan as one shard, as a worker does, and times it.

    Shards of increasing size are tokenized for some seconds; only the last one counts. The first one
    also loads libraries and compiles the codec, so it counts only if there is no second.

    Args:
      request: the request of the job.
      plan: its plan, in `plan_folder(folder, …)`.
      folder: temporary folder; the shard is written below it.
    """
    speech = request.reader.KIND == "speech"
    source = _utterances(request, plan, plan_folder(folder, plan.generation))
    output = folder / "timed"
    job = request.job(output, plan)
    encoder = speech_encoder(job, lambda batch: None) if speech else None
    request.tokenizer.save(output / "tokenizer")
    codec = request.before.codec
    size = _FIRST_WORK[request.reader.KIND]
    timed = TimedShard()
    bad: list[QuarantineRow] = []
    tried, spent, warm = 0, 0.0, False
    while shard := _next_shard(source, size, plan_folder(output, plan.generation)):
        began = time.perf_counter()
        result = tokenize_shard(job, shard, encoder)
        elapsed = time.perf_counter() - began
        tried += shard.documents
        bad += result.quarantine
        if result.info is not None:
            seconds = result.info.frames / codec["frame_rate"] if codec else 0.0
            timed = TimedShard(shard.weight, seconds, elapsed)
            spent += elapsed if warm else 0.0
            if spent >= _TIMED_SECONDS:
                break
            size *= 2 if warm else 1
            warm = True
        elif not warm and tried >= _MOST_UTTERANCES:
            break  # missing files are fast, and there may be millions of them
    message = bad[0].message if bad else ""
    return dataclasses.replace(timed, tried=tried, bad=count_by_reason(bad), message=message)


def _utterances(
    request: Request, plan: Plan, folder: Path
) -> Iterator[tuple[DocumentSource, float]]:
    """Yields each utterance of the plan as its own document, with its expected work."""
    root = str(request.root)
    for shard in plan.shards:
        for document in read_documents(folder, shard):
            for number, utterance in enumerate(document.utterances):
                single = DocumentSource(f"{document.id}/{number}", (utterance,))
                work = request.weigh(single)
                yield (
                    _shorten(single, work, root)
                    if request.reader.KIND == "speech"
                    else (
                        single,
                        work,
                    )
                )


def _shorten(document: DocumentSource, work: float, root: str) -> tuple[DocumentSource, float]:
    """Returns the first half minute of a long utterance, and its part of the expected work."""
    if work <= _LONGEST_SECONDS:
        return document, work
    (utterance,) = document.utterances
    start, seconds = utterance.start or 0.0, work
    if utterance.end is None:  # then `work` is a guess by file size
        found = None
        with contextlib.suppress(BadInputError):
            found = sound_seconds(resolve(utterance, root)) if utterance.member is None else None
        seconds = (found or 0.0) - start
    if seconds <= _LONGEST_SECONDS:
        return document, work
    beginning = dataclasses.replace(utterance, end=start + _LONGEST_SECONDS)
    return DocumentSource(document.id, (beginning,)), work * _LONGEST_SECONDS / seconds


def _next_shard(
    source: Iterator[tuple[DocumentSource, float]], size: float, folder: Path
) -> ShardPlan | None:
    """Writes the next utterances, of `size` expected work, as the documents of a shard."""
    lines: list[str] = []
    work = 0.0
    for document, weight in islice(source, _MOST_UTTERANCES):
        lines.append(document_line(document))
        work += weight
        if work >= size:
            break
    if not lines:
        return None
    content = "".join(lines).encode("ascii")
    digest = hashlib.sha256(content).hexdigest()
    shard = ShardPlan("train", 0, len(lines), len(lines), work, digest)
    write_atomic(documents_path(folder, shard), content)
    return shard
