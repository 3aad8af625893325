"""Writes a small Emilia: Emilia/LANGUAGE/SHARD.tar with an MP3 and a JSON file per utterance."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pipeline_toys import sound_bytes, write_tar

Utterance = tuple[str, np.ndarray]  # (text, float32 mono samples)


def write_corpus(
    folder: Path,
    speakers: Mapping[str, Sequence[Utterance]],
    *,
    shard: str = "EN-B000000",
    rate: int = 24_000,
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes one archive.

    Args:
      folder: gets a folder `Emilia`.
      speakers: utterances by shard and speaker, such as `EN_B00000_S00000`.
      shard: name of the archive.
      rate: Hz of the clips.
      more: further members, at the end.

    Returns:
      the archive.
    """
    members: dict[str, bytes] = {}
    for speaker, utterances in speakers.items():
        for number, (text, clip) in enumerate(utterances):
            name = f"{speaker}_W{number:06d}"
            row = {
                "id": name,
                "wav": f"{speaker.rpartition('_')[0]}/{speaker}/mp3/{name}.mp3",
                "text": text,
                "duration": len(clip) / rate,
                "speaker": speaker,
                "language": shard[:2].lower(),
                "dnsmos": 3.2927,
            }
            members |= utterance_files(name, row, clip, rate)
    return write_tar(folder / "Emilia" / shard[:2] / f"{shard}.tar", members | dict(more or {}))


def utterance_files(
    name: str, row: Mapping[str, object], clip: np.ndarray, rate: int
) -> dict[str, bytes]:
    """Returns the two members of an utterance."""
    content = json.dumps(row, ensure_ascii=False).encode()
    return {f"{name}.mp3": sound_bytes(clip, rate, "mp3"), f"{name}.json": content}
