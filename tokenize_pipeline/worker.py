"""Tokenizes one shard: reads, encodes and writes its documents.

Documents are processed in windows, so that memory does not grow with the shard. The shard gets its final
name and its result is written last: a worker may be killed at any time, and tokenizing the shard again
gives the same bytes.
"""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from soda_jax.codecs import Codec, load_codec
from soda_jax.data.format.shards import ShardWriter
from soda_jax.data.format.splitting import split_document
from soda_jax.errors import UserError
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout
from tokenize_pipeline.encoding import SpeechEncoder, UtteranceKey
from tokenize_pipeline.plan import ShardPlan, plan_folder, read_documents
from tokenize_pipeline.planner import work_of
from tokenize_pipeline.quarantine import BadInputError, QuarantineRow
from tokenize_pipeline.readers import DocumentSource, UtteranceSource
from tokenize_pipeline.results import ShardResult, shard_file, write_progress
from tokenize_pipeline.text_faults import text_fault

# Texts and codes of a window are in memory: a day of audio is about 20 MB with eight codebooks. A
# compressed archive in another order than the documents is read once per window. For sounds, see
# `encoding.HELD_BYTES`.
WINDOW_SECONDS = 24 * 3600.0
WINDOW_TEXT_BYTES = 2**24
WINDOW_DOCUMENTS = 100_000
_PROGRESS_SECONDS = 2.0
_CODEC_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Job:
    """Settings that all shards of a job share; it is sent to every worker.

    Attributes:
      dataset: folder of the data set, visible to all workers.
      generation: number of the plan.
      plan_digest: digest of the plan.
      codec: spec of the codec; None for a text corpus.
      codebook_sizes: codebooks of the layout; also set for a text corpus that has a --codec.
      data_root: absolute folder that audio paths are relative to and must not leave.
      max_audio_seconds: longest utterance.
    """

    dataset: str
    generation: int
    plan_digest: str
    codec: str | None
    codebook_sizes: tuple[int, ...]
    data_root: str
    max_audio_seconds: float


def load_codec_once(spec: str) -> Codec:
    """Returns the codec of a spec, loaded once per process even if threads call this together."""
    with _CODEC_LOCK:
        return cached_codec(spec)


@functools.lru_cache(maxsize=1)
def cached_codec(spec: str) -> Codec:
    """Returns the codec of a spec and keeps the last one. Threads call `load_codec_once`."""
    return load_codec(spec)


def tokenize_shard(job: Job, shard: ShardPlan) -> None:
    """Writes one shard of the data set, then its result, each atomically."""
    dataset = Path(job.dataset)
    folder = plan_folder(dataset, job.generation)
    tokenizer = load_tokenizer(dataset / "tokenizer")
    layout = make_layout(tokenizer, job.codebook_sizes)
    no_codes = np.zeros((0, layout.codebooks), np.uint16)
    encoder, limit = None, float(WINDOW_TEXT_BYTES)
    if job.codec:
        codec, limit = load_codec_once(job.codec), WINDOW_SECONDS
        encoder = SpeechEncoder(codec, job.data_root, job.max_audio_seconds)
    work = work_of("speech" if job.codec else "text", job.data_root)
    progress = _ShardProgress(folder, shard)
    path = dataset / shard.split / shard_file(shard.number)
    rows: list[QuarantineRow] = []
    with contextlib.ExitStack() as stack:
        writer: ShardWriter | None = None
        for documents, weights in _windows(read_documents(folder, shard), work, limit):
            progress.begin(weights)
            utterances = {key: documents[key[0]].utterances[key[1]] for key in weights}
            bad: dict[UtteranceKey, BadInputError] = {}
            texts = _encode_texts(utterances, tokenizer, bad)
            codes = dict.fromkeys(texts, no_codes)
            if encoder is not None:
                sources = {key: utterances[key] for key in texts}
                codes = encoder.encode(sources, bad, progress.advance)
            for number, document in enumerate(documents):
                keys = [(number, position) for position in range(len(document.utterances))]
                kept = [Utterance(*texts[key], codes[key]) for key in keys if key in codes]
                for record in split_document(document.id, kept, layout) if kept else ():
                    # A shard without usable documents has no file.
                    writer = writer or stack.enter_context(ShardWriter(path, layout))
                    writer.write(record)
            for key in sorted(bad):
                source, reason = utterances[key], bad[key].reason
                name, position = documents[key[0]].id, key[1]
                message = str(bad[key])
                rows.append(
                    QuarantineRow(name, position, source.audio, source.where, reason, message)
                )
            progress.end()
        info = writer.close() if writer else None
    dropped = shard.documents - (info.documents if info else 0)
    ShardResult(job.plan_digest, info, dropped, rows).save(folder, shard)


def _windows(
    documents: Iterable[DocumentSource], work: Callable[[UtteranceSource], float], limit: float
) -> Iterator[tuple[Sequence[DocumentSource], dict[UtteranceKey, float]]]:
    """Yields runs of documents of about `limit` total work, with the work of each utterance."""
    window: list[DocumentSource] = []
    weights: dict[UtteranceKey, float] = {}
    total = 0.0
    for document in documents:
        for position, utterance in enumerate(document.utterances):
            weight = weights[len(window), position] = work(utterance)
            total += weight
        window.append(document)
        if total >= limit or len(window) >= WINDOW_DOCUMENTS:
            yield window, weights
            window, weights, total = [], {}, 0.0
    if window:
        yield window, weights


def _encode_texts(
    utterances: Mapping[UtteranceKey, UtteranceSource],
    tokenizer: TextTokenizer,
    bad: dict[UtteranceKey, BadInputError],
) -> dict[UtteranceKey, tuple[str, np.ndarray]]:
    """Returns the stripped text and the ids of each utterance; adds unusable texts to `bad`."""
    texts = {}
    for key, utterance in utterances.items():
        try:
            texts[key] = text_ids(utterance.text, tokenizer)
        except BadInputError as error:
            bad[key] = error
    return texts


def text_ids(text: str, tokenizer: TextTokenizer) -> tuple[str, np.ndarray]:
    """Returns the stripped text and its ids, int32 `[tokens]`; BadInputError if it is unusable."""
    text = text.strip()
    if (fault := text_fault(text)) is not None:
        raise BadInputError(fault.reason, f"the text {fault.message}")
    try:
        ids = tokenizer.encode(text)
    except UserError as error:
        raise BadInputError("not_in_tokenizer", str(error)) from None
    if not len(ids):
        raise BadInputError("not_in_tokenizer", "the tokenizer returns no ids for the text")
    return text, ids


class _ShardProgress:
    """Records every few seconds which part of the shard's work is done."""

    def __init__(self, folder: Path, shard: ShardPlan):
        self._folder, self._shard = folder, shard
        self._before, self._done = 0.0, 0.0
        self._written = time.monotonic()

    def begin(self, weights: Mapping[UtteranceKey, float]) -> None:
        """Begins a window with these weights."""
        self._before, self._weights = self._done, weights

    def advance(self, utterances: Iterable[UtteranceKey]) -> None:
        """Counts utterances of the window as done."""
        self._done += sum(self._weights[key] for key in utterances)
        self._write()

    def end(self) -> None:
        """Ends the window; bad utterances count as done."""
        self._done = self._before + sum(self._weights.values())
        self._write()

    def _write(self) -> None:
        if time.monotonic() - self._written >= _PROGRESS_SECONDS:
            self._written = time.monotonic()
            write_progress(self._folder, self._shard, min(self._done / self._shard.weight, 1.0))
