"""Speech to codes: the sounds of a window of documents, in batches of like length.

Sounds arrive in the order in which archives hold them. They wait until all are there, or until the
bytes held reach a limit, and then go to the codec sorted by length.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from soda_jax.codecs import Codec
from soda_jax.codecs.audio import encode_long
from tokenize_pipeline.archives import ArchiveReader, Key
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.readers import UtteranceSource
from tokenize_pipeline.sound import Sound, as_corpus_names, resolve

BATCH_CLIPS = 32
BATCH_SECONDS = 240.0
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
        for batch in batches(seconds):
            clips: dict[Place, np.ndarray] = {}
            for place in batch:
                try:
                    clips[place] = sounds[place].samples(self._codec.sample_rate)
                except BadInputError as error:
                    bad[place] = error
            codes |= zip(clips, encode_batch(self._codec, list(clips.values())), strict=True)
            self._done(batch)
        return codes


def batches(seconds: Mapping[Place, float]) -> list[list[Place]]:
    """Places by length, in batches that bound the samples held at once."""
    made: list[list[Place]] = []
    total = 0.0
    for place in sorted(seconds, key=lambda place: (seconds[place], place)):
        total += seconds[place]
        if not made or len(made[-1]) == BATCH_CLIPS or total > BATCH_SECONDS:
            made.append([])
            total = seconds[place]
        made[-1].append(place)
    return made


def encode_batch(codec: Codec, clips: list[np.ndarray]) -> list[np.ndarray]:
    """Codes of each clip, uint16 `[frames, codebooks]`; long clips go one by one and in pieces."""
    longest = PIECE_SECONDS * codec.sample_rate
    short = [number for number, clip in enumerate(clips) if len(clip) <= longest]
    codes: dict[int, np.ndarray] = {}
    if short:
        codes |= zip(short, codec.encode([clips[number] for number in short]), strict=True)
    for number, clip in enumerate(clips):
        if number not in codes:
            codes[number] = encode_long(codec, clip, PIECE_SECONDS)
    return [codes[number] for number in range(len(clips))]
