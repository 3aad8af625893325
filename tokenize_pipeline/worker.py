"""The work on one shard: read, encode, write; the only part of the pipeline that opens audio.

Documents are taken in windows, so that memory stays flat however large the shard is. The shard appears
by atomic rename and its result is written last, so a worker may be killed at any point: the shard is
simply done again, with the same bytes.
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
from soda_jax.data.records import RecordData
from soda_jax.data.shards import ShardWriter
from soda_jax.data.splitting import split_document
from soda_jax.errors import UserError
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout
from soda_jax.tokens.vocabulary import VocabularyLayout
from tokenize_pipeline.encoding import Place, SpeechEncoder
from tokenize_pipeline.plan import ShardPlan, plan_folder, read_documents
from tokenize_pipeline.planner import text_bytes
from tokenize_pipeline.quarantine import BadInputError, QuarantineRow
from tokenize_pipeline.readers import DocumentSource, UtteranceSource
from tokenize_pipeline.results import ShardResult, note_progress
from tokenize_pipeline.sound import expected_seconds
from tokenize_pipeline.sweep import shard_file
from tokenize_pipeline.text_faults import text_fault

# A window is held as texts and codes: a day is some 20 MB with eight codebooks, and a compressed archive
# whose order is not that of the documents is passed once for each. The sounds have a limit of their own.
WINDOW_SECONDS = 24 * 3600.0
WINDOW_TEXT_BYTES = 2**24
WINDOW_DOCUMENTS = 100_000
_NOTE_SECONDS = 2.0

Window = Sequence[DocumentSource]  # a `Place` is a place in it


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker knows besides the shard: it travels in the Beam graph to every process.

    Attributes:
      dataset: folder of the data set, seen by all workers.
      generation: which plan is worked on.
      plan_digest: digest of that plan.
      codec: spec of the codec that encodes; None for text alone.
      codebook_sizes: codebooks of the layout; text alone has them too if a codec was named.
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
    """The codec of a spec, loaded once in each process however many threads ask; the last one is kept.

    `functools.lru_cache` alone would let threads that ask at the same time each load a model.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: tuple[str, Codec] | None = None

    def __call__(self, spec: str) -> Codec:
        with self._lock:
            if self._loaded is None or self._loaded[0] != spec:
                self._loaded = None  # makes room before the next one is loaded
                self._loaded = (spec, load_codec(spec))
            return self._loaded[1]

    def cache_clear(self) -> None:
        """Forgets the codec."""
        with self._lock:
            self._loaded = None


load_codec_once = _CodecOnce()


def speech_encoder(job: Job, done: Callable[[list[Place]], None]) -> SpeechEncoder:
    """The encoder for the shards of a job, which names a codec; `done` as `SpeechEncoder` has it."""
    assert job.codec is not None
    return SpeechEncoder(load_codec_once(job.codec), job.data_root, job.max_audio_seconds, done)


def tokenize_shard(job: Job, shard: ShardPlan, encoder: SpeechEncoder | None = None) -> ShardResult:
    """Writes one shard of the data set, then its result, each atomically.

    Args:
      job: what all shards have in common.
      shard: which one.
      encoder: for shards that go through the same archives one after the other; None for one of its
        own, as a shard needs that may be done again anywhere.
    """
    folder = plan_folder(Path(job.dataset), job.generation)
    tokenizer = load_tokenizer(Path(job.dataset) / "tokenizer")
    layout = make_layout(tokenizer, job.codebook_sizes)
    notes = _Notes(folder, shard)
    limit = float(WINDOW_TEXT_BYTES)
    weigh: Callable[[UtteranceSource], float] = text_bytes
    if job.codec:
        encoder, limit = encoder or speech_encoder(job, notes.advance), WINDOW_SECONDS
        weigh = functools.partial(expected_seconds, data_root=job.data_root)
    rows: list[QuarantineRow] = []
    path = Path(job.dataset) / shard.split / shard_file(shard.number)
    with contextlib.ExitStack() as stack:
        writer: ShardWriter | None = None
        for window, weights in _windows(read_documents(folder, shard), weigh, limit):
            notes.begin(weights)
            bad: dict[Place, BadInputError] = {}
            for record in _records(window, tokenizer, layout, encoder, bad):
                # A shard of which nothing is usable has no file.
                writer = writer or stack.enter_context(ShardWriter(path, layout))
                writer.write(record)
            rows += [_row(window, place, bad[place]) for place in sorted(bad)]
            notes.end()
        info = writer.close() if writer else None
    dropped = shard.documents - (info.documents if info else 0)
    result = ShardResult(job.plan_digest, info, dropped, rows)
    result.save(folder, shard)
    return result


def _windows(
    documents: Iterable[DocumentSource], weigh: Callable[[UtteranceSource], float], limit: float
) -> Iterator[tuple[Window, dict[Place, float]]]:
    """Yields runs of documents with the weight of each utterance, some `limit` in all."""
    window: list[DocumentSource] = []
    weights: dict[Place, float] = {}
    total = 0.0
    for document in documents:
        for place, utterance in enumerate(document.utterances):
            weight = weights[len(window), place] = weigh(utterance)
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
    bad: dict[Place, BadInputError],
) -> Iterator[RecordData]:
    """Yields the records of what is good in a window; `bad` receives what is wrong with the rest."""
    texts = _tokenize_texts(window, tokenizer, bad)
    codes = dict.fromkeys(texts, np.zeros((0, layout.codebooks), np.uint16))
    if encoder is not None:
        source = {place: window[place[0]].utterances[place[1]] for place in texts}
        codes = encoder.encode(source, bad)
    for number, document in enumerate(window):
        places = [(number, place) for place in range(len(document.utterances))]
        kept = [Utterance(*texts[place], codes[place]) for place in places if place in codes]
        if kept:
            yield from split_document(document.id, kept, layout)


def _row(window: Window, place: Place, error: BadInputError) -> QuarantineRow:
    document = window[place[0]]
    utterance = document.utterances[place[1]]
    return QuarantineRow(
        document.id, place[1], utterance.audio, utterance.where, error.reason, str(error)
    )


def _tokenize_texts(
    window: Window, tokenizer: TextTokenizer, bad: dict[Place, BadInputError]
) -> dict[Place, tuple[str, np.ndarray]]:
    """Stripped text and ids of every utterance that has good text; the others go to `bad`."""
    texts = {}
    for number, document in enumerate(window):
        for place, utterance in enumerate(document.utterances):
            try:
                texts[number, place] = text_ids(utterance.text, tokenizer)
            except BadInputError as error:
                bad[number, place] = error
    return texts


def text_ids(text: str, tokenizer: TextTokenizer) -> tuple[str, np.ndarray]:
    """The text without white space around it, and its ids; BadInputError if it cannot be used."""
    text = text.strip()
    if (fault := text_fault(text)) is not None:
        raise BadInputError(fault.reason, f"the text {fault.message}")
    try:
        ids = tokenizer.encode(text)
    except UserError as error:
        raise BadInputError("not_in_tokenizer", str(error)) from None
    if not len(ids):
        raise BadInputError("not_in_tokenizer", "the tokenizer makes no ids of the text")
    return text, ids


class _Notes:
    """Tells whoever watches, now and then, which part of the shard's weight is done."""

    def __init__(self, folder: Path, shard: ShardPlan):
        self._folder, self._shard = folder, shard
        self._weights: dict[Place, float] = {}
        self._before = self._done = 0.0
        self._noted = time.monotonic()

    def begin(self, weights: dict[Place, float]) -> None:
        self._before, self._weights = self._done, weights

    def advance(self, places: Iterable[Place]) -> None:
        self._done += sum(self._weights[place] for place in places)
        self._note()

    def end(self) -> None:
        """Ends the window, what was bad in it included."""
        self._done = self._before + sum(self._weights.values())
        self._note()

    def _note(self) -> None:
        if time.monotonic() - self._noted >= _NOTE_SECONDS:
            self._noted = time.monotonic()
            note_progress(self._folder, self._shard, min(self._done / self._shard.weight, 1.0))
