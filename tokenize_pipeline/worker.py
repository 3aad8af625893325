"""Tokenizes one shard: reads, encodes and writes its documents.

Documents are processed in windows, so that memory does not grow with the shard. The shard is renamed
into place and its result is written last: a worker may be killed at any time, and the shard is done
again with the same bytes.
"""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from soda_jax.codecs import Codec, load_codec
from soda_jax.data.format.records import RecordData
from soda_jax.data.format.shards import ShardWriter
from soda_jax.data.format.splitting import split_document
from soda_jax.errors import UserError
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout
from soda_jax.tokens.vocabulary import VocabularyLayout
from tokenize_pipeline.encoding import SpeechEncoder, UtteranceKey
from tokenize_pipeline.plan import ShardPlan, plan_folder, read_documents
from tokenize_pipeline.planner import text_bytes
from tokenize_pipeline.quarantine import BadInputError, QuarantineRow
from tokenize_pipeline.readers import DocumentSource, UtteranceSource
from tokenize_pipeline.results import ShardResult, write_progress
from tokenize_pipeline.sound import expected_seconds
from tokenize_pipeline.sweep import shard_file
from tokenize_pipeline.text_faults import text_fault

# Texts and codes of a window are in memory: a day of audio is about 20 MB with eight codebooks. A
# compressed archive in another order than the documents is read once per window. For sounds, see
# `encoding.HELD_BYTES`.
WINDOW_SECONDS = 24 * 3600.0
WINDOW_TEXT_BYTES = 2**24
WINDOW_DOCUMENTS = 100_000
_PROGRESS_SECONDS = 2.0

Window = Sequence[DocumentSource]


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


class _CodecOnce:
    """Loads the codec of a spec once per process and keeps the last one; safe with threads.

    With `functools.lru_cache`, threads that call it at the same time would each load the codec.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: tuple[str, Codec] | None = None

    def __call__(self, spec: str) -> Codec:
        with self._lock:
            if self._loaded is None or self._loaded[0] != spec:
                self._loaded = None  # frees its memory before the next one is loaded
                self._loaded = (spec, load_codec(spec))
            return self._loaded[1]

    def cache_clear(self) -> None:
        """Drops the codec."""
        with self._lock:
            self._loaded = None


load_codec_once = _CodecOnce()


def speech_encoder(job: Job, done: Callable[[list[UtteranceKey]], None]) -> SpeechEncoder:
    """Returns an encoder for the shards of a speech job; for `done` see `SpeechEncoder`."""
    assert job.codec is not None
    return SpeechEncoder(load_codec_once(job.codec), job.data_root, job.max_audio_seconds, done)


def tokenize_shard(job: Job, shard: ShardPlan, encoder: SpeechEncoder | None = None) -> ShardResult:
    """Writes one shard of the data set, then its result, each atomically.

    Args:
      job: settings that all shards share.
      shard: the shard of the plan.
      encoder: keeps archives open between consecutive shards; None for a new one, as the bytes of a
        shard must not depend on earlier shards.
    """
    folder = plan_folder(Path(job.dataset), job.generation)
    tokenizer = load_tokenizer(Path(job.dataset) / "tokenizer")
    layout = make_layout(tokenizer, job.codebook_sizes)
    progress = _ShardProgress(folder, shard)
    limit = float(WINDOW_TEXT_BYTES)
    weigh: Callable[[UtteranceSource], float] = text_bytes
    if job.codec:
        encoder, limit = encoder or speech_encoder(job, progress.advance), WINDOW_SECONDS
        weigh = functools.partial(expected_seconds, data_root=job.data_root)
    rows: list[QuarantineRow] = []
    path = Path(job.dataset) / shard.split / shard_file(shard.number)
    with contextlib.ExitStack() as stack:
        writer: ShardWriter | None = None
        for window, weights in _windows(read_documents(folder, shard), weigh, limit):
            progress.begin(weights)
            bad: dict[UtteranceKey, BadInputError] = {}
            for record in _records(window, tokenizer, layout, encoder, bad):
                # A shard without usable documents has no file.
                writer = writer or stack.enter_context(ShardWriter(path, layout))
                writer.write(record)
            rows += [_row(window, key, bad[key]) for key in sorted(bad)]
            progress.end()
        info = writer.close() if writer else None
    dropped = shard.documents - (info.documents if info else 0)
    result = ShardResult(job.plan_digest, info, dropped, rows)
    result.save(folder, shard)
    return result


def _windows(
    documents: Iterable[DocumentSource], weigh: Callable[[UtteranceSource], float], limit: float
) -> Iterator[tuple[Window, dict[UtteranceKey, float]]]:
    """Yields runs of documents of about `limit` total weight, with the weight of each utterance."""
    window: list[DocumentSource] = []
    weights: dict[UtteranceKey, float] = {}
    total = 0.0
    for document in documents:
        for number, utterance in enumerate(document.utterances):
            weight = weights[len(window), number] = weigh(utterance)
            total += weight
        window.append(document)
        if total >= limit or len(window) >= WINDOW_DOCUMENTS:
            yield window, weights
            window, weights, total = [], {}, 0.0
    if window:
        yield window, weights


def _records(
    window: Window,
    tokenizer: TextTokenizer,
    layout: VocabularyLayout,
    encoder: SpeechEncoder | None,
    bad: dict[UtteranceKey, BadInputError],
) -> Iterator[RecordData]:
    """Yields the records of the usable utterances of a window; adds the errors of the others to `bad`."""
    texts = _tokenize_texts(window, tokenizer, bad)
    codes = dict.fromkeys(texts, np.zeros((0, layout.codebooks), np.uint16))
    if encoder is not None:
        source = {key: window[key[0]].utterances[key[1]] for key in texts}
        codes = encoder.encode(source, bad)
    for number, document in enumerate(window):
        keys = [(number, position) for position in range(len(document.utterances))]
        kept = [Utterance(*texts[key], codes[key]) for key in keys if key in codes]
        if kept:
            yield from split_document(document.id, kept, layout)


def _row(window: Window, key: UtteranceKey, error: BadInputError) -> QuarantineRow:
    document = window[key[0]]
    utterance = document.utterances[key[1]]
    return QuarantineRow(
        document.id, key[1], utterance.audio, utterance.where, error.reason, str(error)
    )


def _tokenize_texts(
    window: Window, tokenizer: TextTokenizer, bad: dict[UtteranceKey, BadInputError]
) -> dict[UtteranceKey, tuple[str, np.ndarray]]:
    """Returns the stripped text and the ids of each utterance; adds unusable texts to `bad`."""
    texts = {}
    for number, document in enumerate(window):
        for position, utterance in enumerate(document.utterances):
            try:
                texts[number, position] = text_ids(utterance.text, tokenizer)
            except BadInputError as error:
                bad[number, position] = error
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
    """Records every few seconds which part of the shard's weight is done."""

    def __init__(self, folder: Path, shard: ShardPlan):
        self._folder, self._shard = folder, shard
        self._weights: dict[UtteranceKey, float] = {}
        self._before = self._done = 0.0
        self._written = time.monotonic()

    def begin(self, weights: dict[UtteranceKey, float]) -> None:
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
