"""The work on one shard: read, encode, write; the only part of the pipeline that opens audio.

The shard appears by atomic rename and its result is written last, so a worker may be killed at any
point: the shard is simply done again, with the same bytes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from soda_jax.codecs import Codec, load_codec
from soda_jax.codecs.audio import encode_long
from soda_jax.data.shards import ShardWriter
from soda_jax.data.splitting import split_document
from soda_jax.errors import UserError
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout
from tokenize_pipeline.plan import ShardPlan, plan_folder, read_documents
from tokenize_pipeline.quarantine import BadInputError, QuarantineRow
from tokenize_pipeline.readers import DocumentSource
from tokenize_pipeline.results import ShardResult, note_progress
from tokenize_pipeline.sound import expected_seconds, load_sound
from tokenize_pipeline.sweep import shard_file

BATCH_CLIPS = 32
BATCH_SECONDS = 240.0
PIECE_SECONDS = 60.0
_NOTE_SECONDS = 2.0

Place = tuple[int, int]  # (document of the shard, utterance of the document)


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


@functools.lru_cache(maxsize=1)
def load_codec_once(spec: str) -> Codec:
    """The codec, loaded once in each process."""
    return load_codec(spec)


def tokenize_shard(job: Job, shard: ShardPlan) -> ShardResult:
    """Writes one shard of the data set, then its result, each atomically."""
    folder = plan_folder(Path(job.dataset), job.generation)
    documents = read_documents(folder, shard)
    tokenizer = load_tokenizer(Path(job.dataset) / "tokenizer")
    bad: dict[Place, BadInputError] = {}
    texts = _tokenize_texts(documents, tokenizer, bad)
    note = functools.partial(note_progress, folder, shard)
    codes = _encode(documents, list(texts), job, bad, note) if job.codec else None
    nothing = np.zeros((0, len(job.codebook_sizes)), np.uint16)
    utterances = {
        place: Utterance(text, ids, nothing if codes is None else codes[place])
        for place, (text, ids) in texts.items()
        if codes is None or place in codes
    }
    layout = make_layout(tokenizer, job.codebook_sizes)
    info, dropped = None, len(documents)
    if utterances:
        path = Path(job.dataset) / shard.split / shard_file(shard.number)
        with ShardWriter(path, layout) as writer:
            for number, document in enumerate(documents):
                places = [(number, u) for u in range(len(document.utterances))]
                kept = [utterances[place] for place in places if place in utterances]
                for record in split_document(document.id, kept, layout) if kept else ():
                    writer.write(record)
            info = writer.close()
        dropped -= info.documents
    rows = [_row(documents, place, bad[place]) for place in sorted(bad)]
    result = ShardResult(job.plan_digest, info, dropped, rows)
    result.save(folder, shard)
    return result


def _row(documents: list[DocumentSource], place: Place, error: BadInputError) -> QuarantineRow:
    document = documents[place[0]]
    utterance = document.utterances[place[1]]
    return QuarantineRow(
        document.id, place[1], utterance.audio, utterance.where, error.reason, str(error)
    )


def _tokenize_texts(
    documents: list[DocumentSource], tokenizer: TextTokenizer, bad: dict[Place, BadInputError]
) -> dict[Place, tuple[str, np.ndarray]]:
    """Stripped text and ids of every utterance that has good text; the others go to `bad`."""
    texts = {}
    for number, document in enumerate(documents):
        for place, utterance in enumerate(document.utterances):
            try:
                texts[number, place] = _text_ids(utterance.text.strip(), tokenizer)
            except BadInputError as error:
                bad[number, place] = error
    return texts


def _text_ids(text: str, tokenizer: TextTokenizer) -> tuple[str, np.ndarray]:
    if not text:
        raise BadInputError("empty_text", "the text is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"character {error.start} of the text is not valid UTF-8"
        raise BadInputError("invalid_utf8", message) from None
    try:
        ids = tokenizer.encode(text)
    except UserError as error:
        raise BadInputError("not_in_tokenizer", str(error)) from None
    if not len(ids):
        raise BadInputError("not_in_tokenizer", "the tokenizer makes no ids of the text")
    return text, ids


def _encode(
    documents: list[DocumentSource],
    places: list[Place],
    job: Job,
    bad: dict[Place, BadInputError],
    note: Callable[[float], None],
) -> dict[Place, np.ndarray]:
    """Codes of every utterance whose audio is good, uint16 `[frames, codebooks]`.

    Args:
      note: is told now and then which part of the seconds is done.
    """
    assert job.codec is not None
    codec = load_codec_once(job.codec)
    source = {place: documents[place[0]].utterances[place[1]] for place in places}
    seconds: dict[Place, float] = {}
    for place in places:
        try:
            seconds[place] = expected_seconds(source[place], job.data_root, job.max_audio_seconds)
        except BadInputError as error:
            bad[place] = error
    codes: dict[Place, np.ndarray] = {}
    total, done, noted = sum(seconds.values()), 0.0, time.monotonic()
    for batch in _batches(seconds):
        clips: dict[Place, np.ndarray] = {}
        for place in batch:
            try:
                clips[place] = load_sound(source[place], job.data_root, codec.sample_rate)
            except BadInputError as error:
                bad[place] = error
        codes |= zip(clips, _encode_batch(codec, list(clips.values())), strict=True)
        done += sum(seconds[place] for place in batch)
        if time.monotonic() - noted >= _NOTE_SECONDS:
            noted = time.monotonic()
            note(done / total)
    return codes


def _batches(seconds: dict[Place, float]) -> list[list[Place]]:
    """Places by length, in batches that bound the samples held at once."""
    batches: list[list[Place]] = []
    total = 0.0
    for place in sorted(seconds, key=lambda place: (seconds[place], place)):
        total += seconds[place]
        if not batches or len(batches[-1]) == BATCH_CLIPS or total > BATCH_SECONDS:
            batches.append([])
            total = seconds[place]
        batches[-1].append(place)
    return batches


def _encode_batch(codec: Codec, clips: list[np.ndarray]) -> list[np.ndarray]:
    longest = PIECE_SECONDS * codec.sample_rate
    short = [number for number, clip in enumerate(clips) if len(clip) <= longest]
    codes: dict[int, np.ndarray] = {}
    if short:
        codes |= zip(short, codec.encode([clips[number] for number in short]), strict=True)
    for number, clip in enumerate(clips):
        if number not in codes:
            codes[number] = encode_long(codec, clip, PIECE_SECONDS)
    return [codes[number] for number in range(len(clips))]
