"""Tokenizes one shard: reads, encodes and writes its documents.

Documents are processed in groups, so that memory does not grow with the shard. Only a complete
shard is renamed to its final name, and its `ShardResult` is written after that. A worker may
therefore be killed at any time; tokenizing the shard again writes the same bytes.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from soda_jax.data.format.shards import ShardInfo, ShardWriter
from soda_jax.data.format.splitting import split_document
from soda_jax.errors import UserError
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import TextTokenizer, load_tokenizer
from soda_jax.tokens.vocabulary import VocabularyLayout
from tokenize_pipeline.encoding import SpeechEncoder, UtteranceKey, load_codec_once
from tokenize_pipeline.plan import ShardPlan, plan_folder, read_documents
from tokenize_pipeline.planner import work_of
from tokenize_pipeline.quarantine import BadInputError, QuarantineRow
from tokenize_pipeline.readers import DocumentSource, UtteranceSource
from tokenize_pipeline.results import ShardResult, shard_file, write_progress
from tokenize_pipeline.settings import Job
from tokenize_pipeline.text_faults import text_fault

# Limits of a window. Its texts and codes are kept in memory; with eight codebooks, the codes of a
# day of audio are about 20 MB. If the documents are not in the order of their compressed archive,
# the archive is read once per group. `encoding.HELD_BYTES` limits the memory for audio.
WINDOW_SECONDS = 24 * 3600.0
WINDOW_TEXT_BYTES = 2**24
WINDOW_DOCUMENTS = 100_000
_PROGRESS_SECONDS = 2.0


def tokenize_shard(job: Job, shard: ShardPlan) -> None:
    """Writes one shard of the data set atomically, then its result."""
    folder = plan_folder(job.dataset, job.generation)
    tokenizer = load_tokenizer(job.dataset / "tokenizer")
    rows: list[QuarantineRow] = []
    info = write_documents(
        job.dataset / shard.split / shard_file(shard.number),
        job.before.layout,
        _encode_documents(job, folder, shard, tokenizer, rows),
    )
    dropped = shard.documents - (info.documents if info else 0)
    ShardResult(job.plan_digest, info, dropped, rows).save(folder, shard)


def write_documents(
    path: Path, layout: VocabularyLayout, documents: Iterable[tuple[str, Sequence[Utterance]]]
) -> ShardInfo | None:
    """Writes a shard and returns its manifest entry; `documents` yields (id, utterances).

    Documents without utterances are omitted. If no document has utterances, returns None and
    writes no file.
    """
    with contextlib.ExitStack() as stack:
        writer: ShardWriter | None = None
        for name, utterances in documents:
            for record in split_document(name, utterances, layout) if utterances else ():
                writer = writer or stack.enter_context(ShardWriter(path, layout))
                writer.write(record)
        return writer.close() if writer else None


def _encode_documents(
    job: Job, folder: Path, shard: ShardPlan, tokenizer: TextTokenizer, rows: list[QuarantineRow]
) -> Iterator[tuple[str, list[Utterance]]]:
    """Yields (id, usable utterances) for each document; adds unusable utterances to `rows`."""
    encoder, limit = None, float(WINDOW_TEXT_BYTES)
    if job.before.kind == "speech":
        codec, limit = load_codec_once(str(job.options.codec)), WINDOW_SECONDS
        encoder = SpeechEncoder(codec, job.data_root, job.options.max_audio_seconds)
    no_codes = np.zeros((0, job.before.layout.codebooks), np.uint16)
    work = work_of(job.before.kind, job.data_root)
    progress = _ShardProgress(folder, shard)
    for documents, weights in _windows(read_documents(folder, shard), work, limit):
        end = progress.done + sum(weights.values())
        sources = {key: documents[key[0]].utterances[key[1]] for key in weights}
        texts: dict[UtteranceKey, tuple[str, np.ndarray]] = {}
        bad: dict[UtteranceKey, BadInputError] = {}
        for key, source in sources.items():
            try:
                texts[key] = text_ids(source.text, tokenizer)
            except BadInputError as error:
                bad[key] = error
        codes: dict[UtteranceKey, np.ndarray] = {} if encoder else dict.fromkeys(texts, no_codes)
        if encoder:
            for batch in encoder.encode({key: sources[key] for key in texts}, bad):
                codes |= batch
                progress.advance(sum(weights[key] for key in batch))
        for number, document in enumerate(documents):
            keys = [(number, position) for position in range(len(document.utterances))]
            yield document.id, [Utterance(*texts[key], codes[key]) for key in keys if key in codes]
        for key in sorted(bad):
            source, found = sources[key], bad[key]
            where = (documents[key[0]].id, key[1], source.audio, source.where)
            rows.append(QuarantineRow(*where, found.reason, str(found)))
        progress.advance(end - progress.done)  # adds the work of the bad utterances


def _windows(
    documents: Iterable[DocumentSource], work: Callable[[UtteranceSource], float], limit: float
) -> Iterator[tuple[Sequence[DocumentSource], dict[UtteranceKey, float]]]:
    """Yields (documents, work of each utterance) for windows of about `limit` total work."""
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


def text_ids(text: str, tokenizer: TextTokenizer) -> tuple[str, np.ndarray]:
    """Returns stripped text and ids, int32 `[tokens]`; raises BadInputError for unusable text."""
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
    """Writes the completed fraction of the shard's work to a file every few seconds.

    Attributes:
      done: completed work, in seconds of audio or bytes of text.
    """

    def __init__(self, folder: Path, shard: ShardPlan):
        self._folder, self._shard = folder, shard
        self._written, self.done = time.monotonic(), 0.0

    def advance(self, work: float) -> None:
        """Adds completed work, and writes the fraction if the last write was at least 2 s ago."""
        self.done += work
        if time.monotonic() - self._written >= _PROGRESS_SECONDS:
            self._written = time.monotonic()
            write_progress(self._folder, self._shard, min(self.done / self._shard.weight, 1.0))
