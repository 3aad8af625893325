"""Speech to codes: the sounds of a window of documents, in batches of like length.

Sounds arrive in the order in which archives hold them. They wait until all are there, or until the
bytes held reach a limit, and then go to the codec sorted by length. A codec that takes many clips at once,
on an accelerator, is given so many, and threads read and resample the next batch while it works.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from soda_jax.codecs import Codec
from soda_jax.codecs.audio import piece_samples
from tokenize_pipeline.archives import ArchiveReader, Key
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.readers import UtteranceSource
from tokenize_pipeline.sound import Sound, as_corpus_names, resolve

BATCH_CLIPS = 32
BATCH_SECONDS = 240.0
SECONDS_A_CLIP = 15.0  # of a batch larger than that: longer clips make a smaller batch
PIECE_SECONDS = 60.0
HELD_BYTES = 2**28  # of sounds from archives that wait for the codec

Place = tuple[int, int]  # (document, utterance of the document)


class SpeechEncoder:
    """Encodes windows of utterances; one for a shard, so that archives are read on and on."""

    def __init__(
        self,
        codec: Codec,
        data_root: str,
        max_audio_seconds: float,
        done: Callable[[list[Place]], None],
    ):
        """Args: done: is told the places with which the encoder is through, good or bad."""
        self._codec, self._root, self._longest = codec, data_root, max_audio_seconds
        self._done = done
        self._archives = ArchiveReader()
        self._clips = getattr(codec, "clips_at_once", 1)

    def encode(
        self, utterances: Mapping[Place, UtteranceSource], bad: dict[Place, BadInputError]
    ) -> dict[Place, np.ndarray]:
        """Codes of every utterance whose sound is good, uint16 `[frames, codebooks]`.

        Args:
          utterances: of one window.
          bad: receives what is wrong with the others.
        """
        codes: dict[Place, np.ndarray] = {}
        waiting: dict[Place, Sound] = {}
        held = 0
        for place, sound, amount in self._find(utterances, bad):
            waiting[place] = sound
            held += amount
            if held >= HELD_BYTES:
                codes |= self._encode(waiting, bad)
                waiting, held = {}, 0
        return codes | self._encode(waiting, bad)

    def _find(
        self, utterances: Mapping[Place, UtteranceSource], bad: dict[Place, BadInputError]
    ) -> Iterator[tuple[Place, Sound, int]]:
        """Yields (place, its sound, bytes that it adds to memory), plain files first."""
        members: dict[Key, list[Place]] = {}
        for place, utterance in utterances.items():
            try:
                path = resolve(utterance, self._root)
            except BadInputError as error:
                bad[place] = error
                continue
            if utterance.member is None:
                yield place, Sound(utterance, path), 0
            else:
                members.setdefault((path, utterance.member), []).append(place)
        for key, content in self._archives.read(members):
            for number, place in enumerate(members[key]):
                if isinstance(content, BadInputError):
                    message = as_corpus_names(utterances[place], key[0], str(content))
                    bad[place] = BadInputError(content.reason, message)
                else:
                    sound = Sound(utterances[place], key[0], content)
                    yield place, sound, len(content) if number == 0 else 0

    def _encode(
        self, sounds: dict[Place, Sound], bad: dict[Place, BadInputError]
    ) -> dict[Place, np.ndarray]:
        seconds: dict[Place, float] = {}
        for place, sound in sounds.items():
            try:
                seconds[place] = sound.seconds(self._longest)
            except BadInputError as error:
                bad[place] = error
        codes: dict[Place, np.ndarray] = {}
        cut = batches(seconds, self._clips)
        for batch, clips in zip(cut, self._read(cut, sounds, bad), strict=True):
            codes |= zip(clips, encode_batch(self._codec, list(clips.values())), strict=True)
            self._done(batch)
        return codes

    def _read(
        self,
        cut: Sequence[list[Place]],
        sounds: Mapping[Place, Sound],
        bad: dict[Place, BadInputError],
    ) -> Iterator[dict[Place, np.ndarray]]:
        """Yields the samples of each batch; `bad` receives what is wrong."""

        def samples(place: Place) -> np.ndarray | BadInputError:
            try:
                return sounds[place].samples(self._codec.sample_rate)
            except BadInputError as error:
                return error

        def sorted_out(read: Mapping[Place, np.ndarray | BadInputError]) -> dict[Place, np.ndarray]:
            for place, result in read.items():
                if isinstance(result, BadInputError):
                    bad[place] = result
            return {p: r for p, r in read.items() if not isinstance(r, BadInputError)}

        if self._clips == 1:  # the codec itself needs the processor
            for batch in cut:
                yield sorted_out({place: samples(place) for place in batch})
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ahead: dict[Place, Future] = {}
            for batch, following in zip(cut, [*cut[1:], []], strict=True):
                now = ahead or {place: pool.submit(samples, place) for place in batch}
                ahead = {place: pool.submit(samples, place) for place in following}
                yield sorted_out({place: future.result() for place, future in now.items()})


def batches(seconds: Mapping[Place, float], clips: int = 1) -> list[list[Place]]:
    """Places by length, in batches that bound the samples held at once.

    Args:
      seconds: of each place.
      clips: how many the codec takes at once.
    """
    most, longest = max(BATCH_CLIPS, clips), max(BATCH_SECONDS, clips * SECONDS_A_CLIP)
    made: list[list[Place]] = []
    total = 0.0
    for place in sorted(seconds, key=lambda place: (seconds[place], place)):
        total += seconds[place]
        if not made or len(made[-1]) == most or total > longest:
            made.append([])
            total = seconds[place]
        made[-1].append(place)
    return made


def encode_batch(codec: Codec, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes of each clip, uint16 `[frames, codebooks]`; long ones in pieces, as `encode_long` cuts them."""
    size = piece_samples(codec, PIECE_SECONDS)
    starts = [range(0, max(len(clip), 1), size) for clip in clips]
    codes = iter(
        codec.encode(
            [c[at : at + size] for c, places in zip(clips, starts, strict=True) for at in places]
        )
    )
    return [np.concatenate([next(codes) for _ in places]) for places in starts]
