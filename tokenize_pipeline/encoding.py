"""Encodes the utterances of a window (consecutive documents of a shard), in batches by length.

Utterances are read in archive order. They are collected until the window is complete or the
collected bytes reach a limit, and are then encoded in order of length. A codec on an accelerator
encodes `clips_at_once` clips per call, while threads read and resample the next clips.
"""

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from soda_jax.codecs import Codec, load_codec
from soda_jax.codecs.audio import piece_samples
from tokenize_pipeline.archives import ArchiveMember, ArchiveReader
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.readers import UtteranceSource
from tokenize_pipeline.sound import Sound, resolve, with_corpus_path

BATCH_CLIPS = 32
BATCH_SECONDS = 240.0
SECONDS_PER_CLIP = 15.0  # limit of the mean length in a full batch of `clips_at_once` clips
PIECE_SECONDS = 60.0
HELD_BYTES = 2**28  # waiting archive members are encoded when their total reaches this size
_CODEC_LOCK = threading.Lock()

UtteranceKey = tuple[int, int]  # (document in the window, utterance in the document)
Keys = list[UtteranceKey]
Errors = dict[UtteranceKey, BadInputError]
Reads = list[Callable[[], np.ndarray]]


def load_codec_once(spec: str) -> Codec:
    """Returns the codec of a spec; concurrent calls with the same spec load it only once."""
    with _CODEC_LOCK:
        return cached_codec(spec)


@functools.lru_cache(maxsize=1)
def cached_codec(spec: str) -> Codec:
    """Returns the codec of a spec and caches it; concurrent callers must use `load_codec_once`."""
    return load_codec(spec)


class SpeechEncoder:
    """Encodes windows of utterances; archives stay open between windows."""

    def __init__(self, codec: Codec, data_root: str, max_audio_seconds: float):
        """Creates the archive reader; archives are opened when they are read.

        Args:
          codec: codec that encodes the sounds.
          data_root: absolute folder that audio paths are relative to.
          max_audio_seconds: longest allowed utterance, in seconds.
        """
        self._codec, self._root, self._longest = codec, data_root, max_audio_seconds
        self._archives = ArchiveReader()
        self._clips = getattr(codec, "clips_at_once", 1)

    def encode(
        self, utterances: Mapping[UtteranceKey, UtteranceSource], bad: Errors
    ) -> Iterator[dict[UtteranceKey, np.ndarray]]:
        """Yields the codes of usable sounds, uint16 `[frames, codebooks]`, in one dict per batch.

        Args:
          utterances: the utterances of one window.
          bad: dict to which the errors of unusable utterances are added.
        """
        waiting: dict[UtteranceKey, Sound] = {}
        held = 0
        for key, sound, amount in self._find(utterances, bad):
            waiting[key] = sound
            held += amount
            if held >= HELD_BYTES:
                yield from self._encode(waiting, bad)
                waiting, held = {}, 0
        yield from self._encode(waiting, bad)

    def _find(
        self, utterances: Mapping[UtteranceKey, UtteranceSource], bad: Errors
    ) -> Iterator[tuple[UtteranceKey, Sound, int]]:
        """Yields (utterance key, sound, bytes held in memory); sounds in plain files come first."""
        members: dict[ArchiveMember, list[UtteranceKey]] = {}
        for key, utterance in utterances.items():
            try:
                path = resolve(utterance, self._root)
            except BadInputError as error:
                bad[key] = error
                continue
            if utterance.member is None:
                yield key, Sound(utterance, path), 0
            else:
                members.setdefault((path, utterance.member), []).append(key)
        for member, content in self._archives.read(members):
            for number, key in enumerate(members[member]):
                if isinstance(content, BadInputError):
                    message = with_corpus_path(utterances[key], member[0], str(content))
                    bad[key] = BadInputError(content.reason, message)
                else:
                    sound = Sound(utterances[key], member[0], content)
                    yield key, sound, len(content) if number == 0 else 0

    def _encode(
        self, sounds: dict[UtteranceKey, Sound], bad: Errors
    ) -> Iterator[dict[UtteranceKey, np.ndarray]]:
        seconds: dict[UtteranceKey, float] = {}
        for key, sound in sounds.items():
            try:
                seconds[key] = sound.seconds(self._longest)
            except BadInputError as error:
                bad[key] = error

        def read(key: UtteranceKey) -> np.ndarray:
            return sounds[key].samples(self._codec.sample_rate)

        batched = batches(seconds, self._clips)
        reads: Iterable[Reads] = (
            [functools.partial(read, key) for key in batch] for batch in batched
        )
        if self._clips > 1:  # a codec that encodes single clips already uses all cores
            reads = _read_ahead(read, batched)
        for batch, results in zip(batched, reads, strict=True):
            clips: dict[UtteranceKey, np.ndarray] = {}
            for key, result in zip(batch, results, strict=True):
                try:
                    clips[key] = result()
                except BadInputError as error:
                    bad[key] = error
            codes = encode_batch(self._codec, list(clips.values()))
            yield dict(zip(clips, codes, strict=True))


def _read_ahead(
    read: Callable[[UtteranceKey], np.ndarray], batched: Iterable[Keys]
) -> Iterator[Reads]:
    """Yields functions that return `read(key)`, batch by batch; threads read one batch ahead."""
    waiting: deque[Reads] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in batched:
            waiting.append([pool.submit(read, key).result for key in batch])
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting


def batches(seconds: Mapping[UtteranceKey, float], clips: int = 1) -> list[Keys]:
    """Returns utterance keys sorted by length, in batches of limited size and total length.

    Args:
      seconds: length of each utterance, in seconds.
      clips: number of clips that the codec encodes in one call.
    """
    most, longest = max(BATCH_CLIPS, clips), max(BATCH_SECONDS, clips * SECONDS_PER_CLIP)
    made: list[Keys] = []
    total = 0.0
    for key in sorted(seconds, key=lambda key: (seconds[key], key)):
        total += seconds[key]
        if not made or len(made[-1]) == most or total > longest:
            made.append([])
            total = seconds[key]
        made[-1].append(key)
    return made


def encode_batch(codec: Codec, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the codes of each clip, uint16 `[frames, codebooks]`.

    Clips longer than `PIECE_SECONDS` are encoded in pieces, as in `encode_long`.
    """
    size = piece_samples(codec, PIECE_SECONDS)
    starts = [range(0, max(len(clip), 1), size) for clip in clips]
    codes = iter(
        codec.encode(
            [c[at : at + size] for c, begins in zip(clips, starts, strict=True) for at in begins]
        )
    )
    return [np.concatenate([next(codes) for _ in begins]) for begins in starts]
