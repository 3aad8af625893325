"""Reads Multilingual LibriSpeech (MLS), unpacked or as the published archives.

https://www.openslr.org/94

    mls_german/train/transcripts.txt    UTTERANCE, tab, transcript
    mls_german/train/segments.txt       UTTERANCE, tab, URL of the recording, tab, start, tab, end (seconds)
    mls_german/train/audio/SPEAKER/BOOK/UTTERANCE.flac

UTTERANCE is SPEAKER_BOOK_NUMBER; the numbers are not in the order of the recording. In
`mls_german_opus` the sounds are `.opus`. The inputs are `transcripts.txt` files, or archives
(`mls_german.tar.gz`), of which the split `train` is read. Reference: Pratap et al., "MLS: a
large-scale multilingual dataset for speech research", arXiv 2012.03411.

A document consists of consecutive utterances of one recording, sorted by time, without a gap of
more than 0.2 s (SODA, arXiv 2602.16687). It is named after its first utterance, for example
`mls_german/train/4800_10003_000000`. The data root is the folder that contains `mls_german` or the
archives.

Both text files list the utterances book by book, so only one book is in memory at a time. For an
archive, the rows of both files are in memory, and the books are in archive order.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._corpus import Layout, Sounds, TextFile
from tokenize_pipeline.readers._lines import lines
from tokenize_pipeline.readers._rows import Repeats, RowError, no_row, parse_rows, repeat_error

KIND = "speech"
LONGEST_GAP = 0.2  # seconds
_LANGUAGES = {
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "portuguese": "pt",
    "spanish": "es",
}
_UTTERANCE = re.compile(r"(\d+)_(\d+)_\d+", re.ASCII)
_SOUND = re.compile(r"(?:.*/)?train/audio/\d+/\d+/(\d+)_(\d+)_\d+\.[a-z]+", re.ASCII)
_LAYOUT = Layout(
    "MLS",
    "mls_…/SPLIT/transcripts.txt",
    r"[^/]+/[^/]+/transcripts\.txt",
    ("/train/transcripts.txt", "/train/segments.txt"),
)

Book = tuple[str, ...]  # (speaker, book)

data_root = _LAYOUT.data_root


class _Row(NamedTuple):
    """A line of a text file.

    Attributes:
      utterance: the field UTTERANCE.
      rest: the other fields.
      where: position of the line.
      error: why the line is unusable; None if it is usable.
    """

    utterance: str
    rest: str
    where: str
    error: RowError | None


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields the documents book by book."""
    order: dict[Book, int] = {}  # rank of each book in an archive, by its first sound

    def is_sound(name: str) -> bool:
        if matched := _SOUND.fullmatch(name):
            order.setdefault(matched.groups(), len(order))
        return False  # the sizes of up to ten million sounds are not needed

    for path, files, sounds in _LAYOUT.open(inputs, is_sound):
        if sounds.archive is None:
            segments = path.with_name("segments.txt")
            if not segments.is_file():
                raise UserError(f"{segments} is missing, {path} needs it: unpack the whole corpus")
            name = f"{files[0].name.removesuffix('transcripts.txt')}segments.txt"
            files.append(TextFile(name, str(segments), lines(segments)))
        by_name = {PurePosixPath(file.name).stem: file for file in reversed(files)}
        folder = by_name["transcripts"].name.rpartition("/")[0]
        if "/" not in folder:
            raise UserError(f"{path} has no folder mls_…/{folder}: it is not an archive of MLS")
        books = _pairs(_books(by_name["transcripts"]), _books(by_name["segments"]), path)
        if sounds.archive:
            books = iter(sorted(books, key=lambda pair: order.get(pair[0], len(order))))
        for book, transcripts, times in books:
            yield from _documents(folder, sounds, book, transcripts, times)
        order.clear()


def _books(file: TextFile) -> Iterator[tuple[Book, list[_Row]]]:
    """Yields (book, rows) of a text file; unreadable lines are added to the previous book."""
    path = "/".join(file.name.split("/")[-3:])
    is_text = file.name.endswith("transcripts.txt")
    book, rows = Book(), list[_Row]()
    for number, row in parse_rows(file.lines, _fields, text_is_last=is_text):
        error = row if isinstance(row, RowError) else None
        fields = row.row or (book, "", "") if isinstance(row, RowError) else row
        if book and book != fields[0]:
            yield book, rows
            rows = []
        book = fields[0]
        rows.append(_Row(fields[1], fields[2], f"{path}:{number}", error))
    if rows:
        yield book, rows


def _fields(line: str) -> tuple[Book, str, str]:
    """Returns (book, UTTERANCE, other fields) of a line; raises RowError if it is malformed."""
    utterance, _, rest = line.strip().partition("\t")
    if matched := _UTTERANCE.fullmatch(utterance):
        return matched.groups(), utterance, rest
    message = f"{utterance[:80]!r} is not the id of an utterance, SPEAKER_BOOK_NUMBER"
    raise no_row(line, message, attempt=re.match(r"\d+_", utterance, re.ASCII) is not None)


def _pairs(
    transcripts: Iterator[tuple[Book, list[_Row]]],
    segments: Iterator[tuple[Book, list[_Row]]],
    path: Path,
) -> Iterator[tuple[Book, list[_Row], list[_Row]]]:
    """Yields each book with its rows in both files.

    Raises:
      UserError: if the books or their order differ, or the rows of a book are not consecutive.
    """
    seen: set[Book] = set()
    for one, two in itertools.zip_longest(transcripts, segments):
        book = (one or two)[0]
        if one is None or two is None or one[0] != two[0] or book in seen:
            raise UserError(
                f"{path}: transcripts.txt and segments.txt do not list the same books in the same order, at "
                f"{'_'.join(book) or 'the first line'}: sort both, as in LC_ALL=C sort -o segments.txt segments.txt"
            )
        seen.add(book)
        yield book, one[1], two[1]


def _documents(
    folder: str, sounds: Sounds, book: Book, transcripts: list[_Row], segments: list[_Row]
) -> Iterator[DocumentSource | Rejected]:
    """Yields the rejected rows of a book, then its documents."""
    times: dict[str, tuple[tuple[str, float, float], str]] = {}  # UTTERANCE -> (segment, position)
    reported: set[str] = set()  # utterances whose segment is unusable
    for row in segments:
        try:
            segment = _segment(row)
            first, where = times.setdefault(row.utterance, (segment, row.where))
            # An exact repeat of a segment is not reported; a repeated transcript is.
            if first != segment:
                raise repeat_error(row.utterance, where, same=False)
        except RowError as error:
            yield error.rejected(row.where)
            if row.utterance not in times:
                reported.add(row.utterance)
    corpus = folder.split("/")[-2]
    language = _LANGUAGES.get(corpus.removeprefix("mls_").removesuffix("_opus"))
    suffix = ".opus" if corpus.endswith("_opus") else ".flac"
    recordings: dict[str, list[tuple[float, float, str, UtteranceSource]]] = {}
    repeats = Repeats()
    for row in transcripts:
        try:
            if row.error is not None:
                raise row.error
            repeats.check(row.utterance, row.rest, row.where, row.utterance)
            if row.utterance in reported:
                continue
            if row.utterance not in times:
                raise RowError(f"segments.txt does not have {row.utterance!r}")
        except RowError as error:
            yield error.rejected(row.where)
            continue
        (url, start, end), _ = times[row.utterance]
        utterance = sounds.utterance(
            f"{folder}/audio/{'/'.join(book)}/{row.utterance}{suffix}",
            row.rest,
            row.where,
            speaker=book[0],
            language=language,
            seconds=end - start,
        )
        recordings.setdefault(url, []).append((start, end, row.utterance, utterance))
    transcribed = {row.utterance for row in transcripts}
    for name, (_, where) in times.items():
        if name not in transcribed:
            yield Rejected("malformed_row", f"transcripts.txt does not have {name!r}", where)
    for rows in recordings.values():
        rows.sort(key=lambda row: row[:3])
        # Times are in 1/100 s; rounding errors must not split at a gap of exactly 0.2 s.
        gaps = (round(after[0] - before[1], 3) for before, after in itertools.pairwise(rows))
        splits = [number for number, gap in enumerate(gaps, 1) if gap > LONGEST_GAP]
        for begin, end_index in itertools.pairwise([0, *splits, len(rows)]):
            utterances = tuple(row[3] for row in rows[begin:end_index])
            yield DocumentSource(f"{folder}/{rows[begin][2]}", utterances)


def _segment(row: _Row) -> tuple[str, float, float]:
    """Returns (URL of the recording, start, end) of a line; raises RowError if it is malformed."""
    if row.error is not None:
        raise row.error
    try:
        url, start, end = row.rest.rsplit(None, 2)
        segment = url, float(start), float(end)
        if 0 <= segment[1] < segment[2] < math.inf:
            return segment
    except ValueError:
        pass
    raise RowError(f"{row.utterance!r} {row.rest[:200]!r} is not a segment of a recording")
