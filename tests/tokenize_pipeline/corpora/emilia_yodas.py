"""Writes a small Emilia-YODAS: Emilia-YODAS/LANGUAGE/SHARD.tar with an MP3 and a JSON file per utterance."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from corpora.emilia import Utterance, utterance_files
from pipeline_toys import write_tar


def write_corpus(
    folder: Path,
    videos: Mapping[str, Sequence[Utterance]],
    *,
    shard: str = "EN-B000000",
    rate: int = 24_000,
    first: int = 0,
) -> Path:
    """Writes one archive; two speakers alternate in each video.

    Args:
      folder: gets a folder `Emilia-YODAS`.
      videos: utterances by language and video, such as `EN_tKvmUvxYZXI`.
      shard: name of the archive.
      rate: Hz of the clips.
      first: number of the first utterance of each video.

    Returns:
      the archive.
    """
    members: dict[str, bytes] = {}
    for video, utterances in videos.items():
        for number, (text, clip) in enumerate(utterances, first):
            name = f"{video}_W{number:06d}"
            row = {
                "text": text,
                "duration": len(clip) / rate,
                "speaker": f"{video}_SPEAKER_{number % 2:02d}",
                "language": shard[:2].lower(),
                "dnsmos": 2.9,
                "phone_count": len(text),
                "_id": name,
            }
            members |= utterance_files(name, row, clip, rate)
    return write_tar(folder / "Emilia-YODAS" / shard[:2] / f"{shard}.tar", members)
