"""Reads YODAS2, whole videos with captions, as published on Hugging Face.

https://huggingface.co/datasets/espnet/yodas2

    data/en000/text/00000000.json       [{"audio_id": VIDEO, "text": {UTTERANCE: caption, …}}, …]
    data/en000/audio/00000000.tar.gz    VIDEO.wav, 24 kHz
    data/en000/duration/00000000.txt    not needed: captions contain their times

UTTERANCE is VIDEO-NUMBER-START-END; NUMBER has 5 digits, START and END have 8 and are in hundredths
of a second. The subsets `en000` … have manual captions, `en100` … have automatic captions.

The inputs are the files in `text/`; the archive of each file is in `audio/` of the same subset. A
document is a video with all captions in time order (SODA, arXiv 2602.16687). Captions without text
or with zero length, which are frequent, are skipped. The data root is the folder that contains the
subsets.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._lines import check_encoding
from tokenize_pipeline.readers._rows import (
    RepeatedFields,
    Repeats,
    RowError,
    json_value,
    optional_string,
)
from tokenize_pipeline.text_faults import decode_text

KIND = "speech"
_SUBSET = re.compile(r"(.+?)\d{3}")
_TIMES = re.compile(r".+-(\d+)-(\d+)-(\d+)", re.DOTALL)


def data_root(inputs: Sequence[Path]) -> Path:
    """Returns the folder that contains the subsets; raises UserError if there are several."""
    roots = {path.absolute().parents[2] for path in inputs if len(path.absolute().parents) > 2}
    if len(roots) != 1:
        found = " and ".join(sorted(map(str, roots))[:2]) or str(inputs[0])
        raise UserError(
            f"--input has files in {found}: give files SUBSET/text/*.json in one folder of subsets"
        )
    return roots.pop()


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields one document per video, in the order of the files, and keeps one file in memory."""
    root = data_root(inputs)
    for path in inputs:
        subset = path.absolute().parents[1].name
        audio = _archive(path).relative_to(root).as_posix()
        matched = _SUBSET.fullmatch(subset)
        language = matched.group(1) if matched else None
        for number, entry in enumerate(_entries(path), 1):
            where = f"{subset}/text/{path.name}:{number}"
            try:
                yield from _document(entry, audio, language, where)
            except RowError as error:
                yield error.rejected(where)


def _archive(path: Path) -> Path:
    """Returns the archive with the sounds of a caption file; raises UserError if it is missing."""
    archive = path.absolute().parents[1] / "audio" / f"{path.stem}.tar.gz"
    for found in (archive, archive.with_suffix("")):
        if found.is_file():
            return found
    raise UserError(f"{archive} is missing: download it too, or leave {path} out of --input")


def _entries(path: Path) -> list[Any]:
    try:
        content = path.read_bytes()
        check_encoding(content, str(path))
        entries = json_value(decode_text(content.removeprefix(codecs.BOM_UTF8)))
    except (OSError, ValueError, RecursionError) as error:
        cause = "it contains NUL" if isinstance(error, ValueError) and b"\0" in content else error
        raise UserError(f"{path} cannot be read: {cause}; download it again") from None
    if not isinstance(entries, list):
        raise UserError(
            f"{path} is not a list of videos but {type(entries).__name__}: see --format"
        )
    return entries


def _document(
    entry: Any, audio: str, language: str | None, where: str
) -> Iterator[DocumentSource | Rejected]:
    if not isinstance(entry, dict):
        raise RowError(f"a video is {type(entry).__name__}, not an object")
    if isinstance(entry, RepeatedFields):
        raise RowError(f"field {entry.first_repeated()!r} of a video occurs twice")
    video, captions = optional_string(entry, "audio_id"), entry.get("text")
    if video is None:
        raise RowError("'audio_id' is missing or empty")
    if not isinstance(captions, dict):
        raise RowError(f"'text' of video {video} is {type(captions).__name__}, not an object")
    kept: list[tuple[int, int, UtteranceSource]] = []
    repeats = Repeats()
    pairs = captions.pairs if isinstance(captions, RepeatedFields) else list(captions.items())
    for index, (name, text) in enumerate(pairs, 1):
        position = f"{where}:{name}"
        if len(pairs) > len(captions):  # some name is repeated
            position += f" (caption {index})"
        try:
            times = _TIMES.fullmatch(name)
            if times is None:
                raise RowError(f"utterance id {name!r} has no times")
            if not isinstance(text, str):
                raise RowError(f"caption {name!r} is {text!r}, not a string")
            number, start, end = map(int, times.groups())
            if not (words := text.strip()) or start == end:
                continue
            # Two captions with the same times would repeat the same sound.
            repeats.check((start, end), words, position, name)
        except RowError as error:
            yield error.rejected(position, video)
            continue
        utterance = UtteranceSource(
            text,
            audio,
            start / 100,
            end / 100,
            language=language,
            member=f"{video}.wav",
            where=position,
        )
        kept.append((start, number, utterance))
    if kept:
        kept.sort(key=lambda caption: caption[:2])
        yield DocumentSource(video, tuple(caption[2] for caption in kept))
