"""LibriSpeech, unpacked or as the published archives: one document a chapter. https://www.openslr.org/12

    LibriSpeech/dev-clean/84/121123/84-121123.trans.txt
    LibriSpeech/dev-clean/84/121123/84-121123-0000.flac

A line of a `.trans.txt` is the id of an utterance, a space and its transcript in capitals. The inputs are
`.trans.txt` files, or the archives (`dev-clean.tar.gz`, …) as they are. In an archive the files of a
chapter follow each other, in no order; their sizes give expected lengths. The layout is that of README.TXT in each archive; the corpus is
Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books", ICASSP 2015.

Text is lower-cased, as SODA's validation has it: that all is in capitals tells nothing. Ids are
`librispeech/SUBSET/SPEAKER-CHAPTER`. The data root is the folder that holds `LibriSpeech`, or the archives.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._folders import common_folder, place_in
from tokenize_pipeline.readers._lines import RowError, content_lines, lines
from tokenize_pipeline.readers._rows import Repeats, no_row, uncut
from tokenize_pipeline.readers._tar import is_tar, members, seconds_of

KIND = "speech"
_TRANSCRIPTS = ".trans.txt"
_PLACE = re.compile(r"(.*/)?(?P<subset>[^/]+)/(?P<speaker>\d+)/(?P<chapter>\d+)/[^/]+", re.ASCII)


def data_root(inputs: Sequence[Path]) -> Path:
    """The folder that holds `LibriSpeech` or the archives; UserError for files that are neither."""
    return common_folder(path.parent if is_tar(path) else _top(path) for path in inputs)


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields the chapters in the order of the files, or as they stand in the archives."""
    root = data_root(inputs)
    for path in inputs:
        name = place_in(root, path)
        if is_tar(path):
            yield from _archive(path, name)
        else:
            yield from _chapter(name, lines(path), None, {})


def _top(path: Path) -> Path:
    absolute = path.absolute()
    if not path.name.endswith(_TRANSCRIPTS):
        raise UserError(f"{path} is neither *{_TRANSCRIPTS} nor an archive of LibriSpeech")
    if len(absolute.parents) < 5 or _PLACE.fullmatch(absolute.as_posix()) is None:
        raise UserError(
            f"{path} is not LibriSpeech/SUBSET/SPEAKER/CHAPTER/*{_TRANSCRIPTS}: keep the folders"
        )
    return absolute.parents[4]


def _archive(path: Path, archive: str) -> Iterator[DocumentSource | Rejected]:
    found = False
    folder, sizes = "", dict[str, int]()
    transcripts: list[tuple[str, bytes]] = []
    for name, size, content in members(path, lambda name: name.endswith(_TRANSCRIPTS)):
        if name.rpartition("/")[0] != folder:  # sounds may stand before and after their transcripts
            for place, text in transcripts:
                rows = content_lines(text, f"{path}: {place}")
                yield from _chapter(place, rows, archive, sizes)
            folder, sizes, transcripts = name.rpartition("/")[0], {}, []
        if content is not None:
            if _PLACE.fullmatch(name) is None:
                raise UserError(f"{path} holds {name}: it is no archive of LibriSpeech")
            found = True
            transcripts.append((name, content))
        sizes[name] = size
    for place, text in transcripts:
        yield from _chapter(place, content_lines(text, f"{path}: {place}"), archive, sizes)
    if not found:
        raise UserError(f"{path} holds no *{_TRANSCRIPTS}: it is no archive of LibriSpeech")


def _chapter(
    name: str, rows: Iterable[tuple[int, str]], archive: str | None, sizes: Mapping[str, int]
) -> Iterator[DocumentSource | Rejected]:
    """Yields the rejected rows and then the document of one `.trans.txt`, if a row is left.

    `sizes` are those of the members of its folder in the archive, in bytes; empty for an unpacked corpus.
    """
    place = _PLACE.fullmatch(f"/{name}")
    assert place is not None
    chapter = f"{place['speaker']}-{place['chapter']}"
    document = f"librispeech/{place['subset']}/{chapter}"
    folder, _, file = name.rpartition("/")
    utterances, repeats = [], Repeats()
    for number, row in uncut(_rows(rows, chapter)):
        where = f"{place['subset']}/{file}:{number}"
        try:
            if isinstance(row, RowError):
                raise row
            utterance, text = row
            repeats.check(utterance, text.strip(), where, utterance)
        except RowError as error:
            yield Rejected(error.reason, str(error), where, document)
            continue
        sound = f"{folder}/{utterance}.flac"
        utterances.append(
            UtteranceSource(
                text.lower(),
                archive or sound,
                speaker=place["speaker"],
                language="en",
                member=sound if archive else None,
                seconds=seconds_of(sound, sizes[sound]) if sound in sizes else None,
                where=where,
            )
        )
    if utterances:
        yield DocumentSource(document, tuple(utterances))


def _rows(
    rows: Iterable[tuple[int, str]], chapter: str
) -> Iterator[tuple[int, tuple[str, str] | RowError]]:
    """Yields (number, (utterance, transcript)) of the lines that are not empty."""
    identity = re.compile(rf"{chapter}-\d+", re.ASCII)
    for number, line in rows:
        utterance, _, text = line.strip().partition(" ")
        if identity.fullmatch(utterance):
            yield number, (utterance, text)
        elif utterance:
            message = f"{utterance[:80]!r} is not the id of an utterance of chapter {chapter}"
            attempt = re.match(r"\d+-", utterance, re.ASCII) is not None
            yield number, no_row(line, message, attempt=attempt)
