"""LibriSpeech, unpacked or as the published archives: one document per chapter. https://www.openslr.org/12

    LibriSpeech/dev-clean/84/121123/84-121123.trans.txt
    LibriSpeech/dev-clean/84/121123/84-121123-0000.flac

A line of a `.trans.txt` is the id of an utterance, a space and its transcript in capitals. The inputs are
`.trans.txt` files, or the published archives (`dev-clean.tar.gz`, …). In an archive the files of a chapter are
contiguous, in any order; their sizes give expected lengths. The layout is described in README.TXT of each
archive; the corpus is Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books", ICASSP 2015.

Text is lower-cased, as in SODA's validation, because capitals carry no information. Ids are
`librispeech/SUBSET/SPEAKER-CHAPTER`. The data root is the folder that contains `LibriSpeech`, or the archives.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected
from tokenize_pipeline.readers._folders import common_folder, relative_path
from tokenize_pipeline.readers._lines import RowError, content_lines, lines
from tokenize_pipeline.readers._rows import Repeats, no_row, reject_split_rows
from tokenize_pipeline.readers._tar import Sounds, is_tar, members

KIND = "speech"
_TRANSCRIPTS = ".trans.txt"
_PATH = re.compile(r"(.*/)?(?P<subset>[^/]+)/(?P<speaker>\d+)/(?P<chapter>\d+)/[^/]+", re.ASCII)


def data_root(inputs: Sequence[Path]) -> Path:
    """Returns the folder that contains `LibriSpeech` or the archives; UserError for other files."""
    return common_folder(path.parent if is_tar(path) else _top(path) for path in inputs)


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields the chapters in the order of the files, or of the archives."""
    root = data_root(inputs)
    for path in inputs:
        name = relative_path(root, path)
        if is_tar(path):
            yield from _archive(path, name)
        else:
            yield from _chapter(name, lines(path), Sounds(None, {}))


def _top(path: Path) -> Path:
    absolute = path.absolute()
    if not path.name.endswith(_TRANSCRIPTS):
        raise UserError(f"{path} is neither *{_TRANSCRIPTS} nor an archive of LibriSpeech")
    if len(absolute.parents) < 5 or _PATH.fullmatch(absolute.as_posix()) is None:
        raise UserError(
            f"{path} is not LibriSpeech/SUBSET/SPEAKER/CHAPTER/*{_TRANSCRIPTS}: keep the folders"
        )
    return absolute.parents[4]


def _archive(path: Path, archive: str) -> Iterator[DocumentSource | Rejected]:
    found = False
    folder, sizes = "", dict[str, int]()
    transcripts: list[tuple[str, bytes]] = []
    for name, size, content in members(path, lambda name: name.endswith(_TRANSCRIPTS)):
        if name.rpartition("/")[0] != folder:  # sounds may precede or follow their transcripts
            for member, text in transcripts:
                rows = content_lines(text, f"{path}: {member}")
                yield from _chapter(member, rows, Sounds(archive, sizes))
            folder, sizes, transcripts = name.rpartition("/")[0], {}, []
        if content is not None:
            if _PATH.fullmatch(name) is None:
                raise UserError(f"{path} contains {name}: it is not an archive of LibriSpeech")
            found = True
            transcripts.append((name, content))
        sizes[name] = size
    for member, text in transcripts:
        yield from _chapter(
            member, content_lines(text, f"{path}: {member}"), Sounds(archive, sizes)
        )
    if not found:
        raise UserError(f"{path} has no *{_TRANSCRIPTS}: it is not an archive of LibriSpeech")


def _chapter(
    name: str, rows: Iterable[tuple[int, str]], sounds: Sounds
) -> Iterator[DocumentSource | Rejected]:
    """Yields the rejected rows of one `.trans.txt`, then its document if a row is usable."""
    parts = _PATH.fullmatch(f"/{name}")
    assert parts is not None
    chapter = f"{parts['speaker']}-{parts['chapter']}"
    document = f"librispeech/{parts['subset']}/{chapter}"
    folder, _, file = name.rpartition("/")
    utterances, repeats = [], Repeats()
    for number, row in reject_split_rows(_rows(rows, chapter)):
        where = f"{parts['subset']}/{file}:{number}"
        try:
            if isinstance(row, RowError):
                raise row
            utterance, text = row
            repeats.check(utterance, text.strip(), where, utterance)
        except RowError as error:
            yield Rejected(error.reason, str(error), where, document)
            continue
        sound, speaker = f"{folder}/{utterance}.flac", parts["speaker"]
        utterances.append(
            sounds.utterance(sound, text.lower(), where, speaker=speaker, language="en")
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
