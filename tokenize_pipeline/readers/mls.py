"""Multilingual LibriSpeech (MLS), unpacked or as the published archives. https://www.openslr.org/94

    mls_german/train/transcripts.txt    UTTERANCE, tab, transcript
    mls_german/train/segments.txt       UTTERANCE, tab, URL of the recording, tab, start, tab, end (seconds)
    mls_german/train/audio/SPEAKER/BOOK/UTTERANCE.flac

UTTERANCE is SPEAKER_BOOK_NUMBER; the numbers are not in the order of the recording. In `mls_german_opus` the
sounds are `.opus`. The inputs are `transcripts.txt` files, or archives (`mls_german.tar.gz`), of which the split
`train` is read. The corpus is Pratap et al., "MLS: a large-scale multilingual dataset for speech research",
arXiv 2012.03411.

A document is a run of utterances of one recording, sorted by time, without a gap of more than 0.2 s (SODA,
arXiv 2602.16687). It is named after its first utterance: `mls_german/train/4800_10003_000000`. The data root is
the folder that contains `mls_german`, or the archives.

Both text files list the utterances book by book, so that one book is in memory at a time. For an archive, both
files are in memory, and the documents are in the order of the books in the archive.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._folders import common_folder, relative_path
from tokenize_pipeline.readers._lines import RowError, content_lines, lines
from tokenize_pipeline.readers._rows import Repeats, no_row, reject_split_rows, repeat_error
from tokenize_pipeline.readers._tar import Sounds, is_tar, members

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
_METADATA = re.compile(r"(?:.*/)?[^/]+/train/(?:transcripts|segments)\.txt")
_SOUND = re.compile(r"(?:.*/)?train/audio/\d+/\d+/(\d+)_(\d+)_\d+\.[a-z]+", re.ASCII)

Book = tuple[str, str]  # (speaker, book)
_Segment = tuple[str, float, float]  # (URL of the recording, start, end), in seconds


class _Split(NamedTuple):
    """A split: path `mls_german/train`, language, suffix of the sounds, archive if it is in one."""

    name: str
    language: str | None
    suffix: str
    archive: str | None


class _Row(NamedTuple):
    """A line of a text file: book, UTTERANCE, the other fields, position, error if it is unusable."""

    book: Book | None
    utterance: str
    rest: str
    where: str
    error: RowError | None


def data_root(inputs: Sequence[Path]) -> Path:
    """Returns the folder that contains `mls_…` or the archives; UserError for other files."""
    return common_folder(path.parent if is_tar(path) else _top(path) for path in inputs)


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields the documents book by book."""
    root = data_root(inputs)
    for path in inputs:
        if is_tar(path):
            yield from _archive(path, relative_path(root, path))
            continue
        folder = path.absolute().parent
        segments = folder / "segments.txt"
        if not segments.is_file():
            raise UserError(f"{segments} is missing, {path} needs it: unpack the whole corpus")
        split = _split(relative_path(root, folder), None)
        books = _pairs(_books(lines(path), path), _books(lines(segments), segments), str(path))
        for book, transcripts, times in books:
            yield from _documents(split, book, transcripts, times)


def _top(path: Path) -> Path:
    absolute = path.absolute()
    if path.name != "transcripts.txt" or len(absolute.parents) < 3:
        raise UserError(f"{path} is neither mls_…/SPLIT/transcripts.txt nor an archive of MLS")
    return absolute.parents[2]


def _split(name: str, archive: str | None) -> _Split:
    corpus = name.split("/")[-2]
    language = corpus.removeprefix("mls_").removesuffix("_opus")
    suffix = ".opus" if corpus.endswith("_opus") else ".flac"
    return _Split(name, _LANGUAGES.get(language), suffix, archive)


def _archive(path: Path, archive: str) -> Iterator[DocumentSource | Rejected]:
    found: dict[str, tuple[str, bytes]] = {}
    order: dict[Book, int] = {}
    for name, _, content in members(path, lambda name: _METADATA.fullmatch(name) is not None):
        if content is not None:
            found.setdefault(PurePosixPath(name).stem, (name, content))
        elif matched := _SOUND.fullmatch(name):
            order.setdefault((matched[1], matched[2]), len(order))
    for name in ("transcripts", "segments"):
        if name not in found:
            raise UserError(f"{path} has no train/{name}.txt: it is not an archive of MLS")
    split = _split(found["transcripts"][0].rpartition("/")[0], archive)
    transcripts, segments = (
        _books(content_lines(content, f"{path}: {name}"), path.parent / name)
        for name, content in (found["transcripts"], found["segments"])
    )
    pairs = _pairs(transcripts, segments, str(path))
    for book, texts, times in sorted(pairs, key=lambda pair: order.get(pair[0], len(order))):
        yield from _documents(split, book, texts, times)


def _books(rows: Iterable[tuple[int, str]], path: Path) -> Iterator[tuple[Book, list[_Row]]]:
    """Yields (book, its rows) of a text file; a malformed line belongs to the book of the previous line."""
    file = "/".join(path.parts[-3:])
    parsed = _parsed(rows, file)
    book: Book | None = None
    book_rows: list[_Row] = []
    # Only transcripts have text in the last field.
    for number, row in reject_split_rows(parsed) if path.stem == "transcripts" else parsed:
        if isinstance(row, RowError):
            row = (row.row or _Row(None, "", "", f"{file}:{number}", None))._replace(error=row)
        if row.book is not None:
            if book is not None and book != row.book:
                yield book, book_rows
                book_rows = []
            book = row.book
        book_rows.append(row)
    if book_rows:
        yield book or ("", ""), book_rows


def _parsed(rows: Iterable[tuple[int, str]], file: str) -> Iterator[tuple[int, _Row | RowError]]:
    """Yields (number, row) of the lines that are not empty."""
    for number, line in rows:
        utterance, _, rest = line.strip().partition("\t")
        if matched := _UTTERANCE.fullmatch(utterance):
            book = (matched[1], matched[2])
            yield number, _Row(book, utterance, rest, f"{file}:{number}", None)
        elif utterance:
            message = f"{utterance[:80]!r} is not the id of an utterance, SPEAKER_BOOK_NUMBER"
            attempt = re.match(r"\d+_", utterance, re.ASCII) is not None
            yield number, no_row(line, message, attempt=attempt)


def _pairs(
    transcripts: Iterator[tuple[Book, list[_Row]]],
    segments: Iterator[tuple[Book, list[_Row]]],
    name: str,
) -> Iterator[tuple[Book, list[_Row], list[_Row]]]:
    """Yields each book with its rows of both files.

    Raises:
      UserError: if the files do not list the same books in the same order, each contiguously.
    """
    seen: set[Book] = set()
    for one, two in itertools.zip_longest(transcripts, segments):
        book = (one or two)[0]
        if one is None or two is None or one[0] != two[0] or book in seen:
            raise UserError(
                f"{name}: transcripts.txt and segments.txt do not list the same books in the same order, at "
                f"{'_'.join(book)}: sort both, as in LC_ALL=C sort -o segments.txt segments.txt"
            )
        seen.add(book)
        yield book, one[1], two[1]


def _documents(
    split: _Split, book: Book, transcripts: list[_Row], segments: list[_Row]
) -> Iterator[DocumentSource | Rejected]:
    """Yields the rejected rows of a book, then its documents."""
    times: dict[str, tuple[_Segment, str]] = {}
    reported: set[str] = set()  # utterances whose segment is unusable
    for row in segments:
        try:
            found = _segment(row)
            first = times.setdefault(row.utterance, (found, row.where))
            # A repeated segment adds nothing: the transcript describes the utterance.
            if first[0] != found:
                raise repeat_error(row.utterance, first[1], same=False)
        except RowError as error:
            yield Rejected(error.reason, str(error), row.where)
            if row.utterance not in times:
                reported.add(row.utterance)
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
            yield Rejected(error.reason, str(error), row.where)
            continue
        url, start, end = times[row.utterance][0]
        utterance = _utterance(split, book, row, end - start)
        recordings.setdefault(url, []).append((start, end, row.utterance, utterance))
    transcribed = {row.utterance for row in transcripts}
    for name, (_, where) in times.items():
        if name not in transcribed:
            yield Rejected("malformed_row", f"transcripts.txt does not have {name!r}", where)
    for rows in recordings.values():
        rows.sort(key=lambda row: row[:3])
        begin = 0
        for end_index in range(1, len(rows) + 1):
            # Times are in hundredths: rounding errors must not split at a gap of exactly 0.2 s.
            if (
                end_index == len(rows)
                or round(rows[end_index][0] - rows[end_index - 1][1], 3) > LONGEST_GAP
            ):
                utterances = tuple(row[3] for row in rows[begin:end_index])
                yield DocumentSource(f"{split.name}/{rows[begin][2]}", utterances)
                begin = end_index


def _utterance(split: _Split, book: Book, row: _Row, seconds: float) -> UtteranceSource:
    sound = f"{split.name}/audio/{book[0]}/{book[1]}/{row.utterance}{split.suffix}"
    fields = {"speaker": book[0], "language": split.language, "seconds": seconds}
    return Sounds(split.archive, {}).utterance(sound, row.rest, row.where, **fields)


def _segment(row: _Row) -> _Segment:
    """Returns (URL, start, end) of a line of segments.txt; RowError if it is malformed."""
    if row.error is not None:
        raise row.error
    fields = row.rest.rsplit(None, 2)
    try:
        url, start, end = fields[0], float(fields[1]), float(fields[2])
    except (IndexError, ValueError):
        url, start, end = "", 0.0, 0.0
    if not 0 <= start < end < math.inf:
        raise RowError(f"{row.utterance!r} {row.rest[:200]!r} is not a segment of a recording")
    return url, start, end
