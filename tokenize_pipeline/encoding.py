"""Encodes the sounds of a window of documents, in batches of similar length.

Sounds arrive in the order of the archives. They are collected until the window is complete or their
bytes reach a limit, and are then encoded in order of length. A codec on an accelerator encodes
`clips_at_once` clips per call, while threads read and resample the next batch.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from soda_jax.codecs import Codec
from soda_jax.codecs.audio import piece_samples
from tokenize_pipeline.archives import ArchiveMember, ArchiveReader
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.readers import UtteranceSource
from tokenize_pipeline.sound import Sound, resolve, with_corpus_path

BATCH_CLIPS = 32
BATCH_SECONDS = 240.0
SECONDS_PER_CLIP = 15.0  # times `clips_at_once` limits the seconds of a large batch
PIECE_SECONDS = 60.0
HELD_BYTES = 2**28  # of sounds from archives, waiting for the codec

UtteranceKey = tuple[int, int]  # (document in the window, utterance in the document)


class SpeechEncoder:
    """Encodes windows of utterances. It keeps archives open between windows."""

    def __init__(
        self,
        codec: Codec,
        data_root: str,
        max_audio_seconds: float,
        done: Callable[[list[UtteranceKey]], None],
    ):
        """Opens nothing yet.

        Args:
          codec: encodes the sounds.
          data_root: absolute folder that audio paths are relative to.
          max_audio_seconds: longest utterance.
          done: is called with each batch of encoded utterances.
        """
        self._codec, self._root, self._longest = codec, data_root, max_audio_seconds
        self._done = done
        self._archives = ArchiveReader()
        self._clips = getattr(codec, "clips_at_once", 1)

    def encode(
        self,
        utterances: Mapping[UtteranceKey, UtteranceSource],
        bad: dict[UtteranceKey, BadInputError],
    ) -> dict[UtteranceKey, np.ndarray]:
        """Returns the codes of every utterance with a usable sound, uint16 `[frames, codebooks]`.

        Args:
          utterances: the utterances of one window.
          bad: receives the errors of the others.
        """
        codes: dict[UtteranceKey, np.ndarray] = {}
        waiting: dict[UtteranceKey, Sound] = {}
        held = 0
        for key, sound, amount in self._find(utterances, bad):
            waiting[key] = sound
            held += amount
            if held >= HELD_BYTES:
                codes |= self._encode(waiting, bad)
                waiting, held = {}, 0
        return codes | self._encode(waiting, bad)

    def _find(
        self,
        utterances: Mapping[UtteranceKey, UtteranceSource],
        bad: dict[UtteranceKey, BadInputError],
    ) -> Iterator[tuple[UtteranceKey, Sound, int]]:
        """Yields (utterance key, its sound, bytes that it adds to memory), plain files first."""
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
        self, sounds: dict[UtteranceKey, Sound], bad: dict[UtteranceKey, BadInputError]
    ) -> dict[UtteranceKey, np.ndarray]:
        seconds: dict[UtteranceKey, float] = {}
        for key, sound in sounds.items():
            try:
                seconds[key] = sound.seconds(self._longest)
            except BadInputError as error:
                bad[key] = error
        codes: dict[UtteranceKey, np.ndarray] = {}
        batched = batches(seconds, self._clips)
        for batch, clips in zip(batched, self._read(batched, sounds, bad), strict=True):
            codes |= zip(clips, encode_batch(self._codec, list(clips.values())), strict=True)
            self._done(batch)
        return codes

    def _read(
        self,
        batched: Sequence[list[UtteranceKey]],
        sounds: Mapping[UtteranceKey, Sound],
        bad: dict[UtteranceKey, BadInputError],
    ) -> Iterator[dict[UtteranceKey, np.ndarray]]:
        """Yields the samples of each batch; adds the errors to `bad`."""

        def samples(key: UtteranceKey) -> np.ndarray | BadInputError:
            try:
                return sounds[key].samples(self._codec.sample_rate)
            except BadInputError as error:
                return error

        def usable(
            read: Mapping[UtteranceKey, np.ndarray | BadInputError],
        ) -> dict[UtteranceKey, np.ndarray]:
            for key, result in read.items():
                if isinstance(result, BadInputError):
                    bad[key] = result
            return {p: r for p, r in read.items() if not isinstance(r, BadInputError)}

        if self._clips == 1:  # the codec itself uses the CPU
            for batch in batched:
                yield usable({key: samples(key) for key in batch})
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ahead: dict[UtteranceKey, Future] = {}
            for batch, following in zip(batched, [*batched[1:], []], strict=True):
                now = ahead or {key: pool.submit(samples, key) for key in batch}
                ahead = {key: pool.submit(samples, key) for key in following}
                yield usable({key: future.result() for key, future in now.items()})


def batches(seconds: Mapping[UtteranceKey, float], clips: int = 1) -> list[list[UtteranceKey]]:
    """Returns utterance keys sorted by length, in batches of limited total length.

    Args:
      seconds: length of each utterance.
      clips: clips that the codec encodes in one call.
    """
    most, longest = max(BATCH_CLIPS, clips), max(BATCH_SECONDS, clips * SECONDS_PER_CLIP)
    made: list[list[UtteranceKey]] = []
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
