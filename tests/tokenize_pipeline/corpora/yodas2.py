"""Writes a small YODAS2: data/SUBSET/{audio,text,duration}/SHARD.{tar.gz,json,txt}."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pipeline_toys import sound_bytes, write_tar

Caption = tuple[str, np.ndarray]  # (text, float32 mono samples)
GAP_SECONDS = 0.25


def write_corpus(
    folder: Path,
    videos: Mapping[str, Sequence[Caption]],
    *,
    subset: str = "en000",
    shard: str = "00000000",
    rate: int = 24_000,
    more: Mapping[str, object] | None = None,
) -> Path:
    """Writes one shard of a subset, the captions of a video with silence between them.

    Args:
      folder: gets a folder `data`.
      videos: captions by video id.
      subset: name of the subset.
      shard: number of the shard.
      rate: Hz of the clips.
      more: further utterance ids and captions, for every video whose id they begin with.

    Returns:
      the file of captions.
    """
    base = folder / "data" / subset
    entries: list[dict[str, object]] = []
    members: dict[str, bytes] = {}
    durations: list[str] = []
    for video, captions in videos.items():
        text: dict[str, object] = {}
        sound, start = [], 0
        for number, (caption, clip) in enumerate(captions):
            first, last = (round(100 * at / rate) for at in (start, start + len(clip)))
            text[f"{video}-{number:05d}-{first:08d}-{last:08d}"] = caption
            sound += [clip, np.zeros(round(GAP_SECONDS * rate), np.float32)]
            start += len(clip) + len(sound[-1])
        text |= {name: value for name, value in (more or {}).items() if name.startswith(video)}
        entries.append({"audio_id": video, "text": text})
        members[f"./{video}.wav"] = sound_bytes(np.concatenate(sound), rate)
        durations.append(f"{video} {start / rate:.2f}\n")
    write_tar(base / "audio" / f"{shard}.tar.gz", members)
    for kind, name, content in (
        ("text", f"{shard}.json", json.dumps(entries, ensure_ascii=False)),
        ("duration", f"{shard}.txt", "".join(durations)),
    ):
        (base / kind).mkdir(exist_ok=True)
        (base / kind / name).write_text(content)
    return base / "text" / f"{shard}.json"
