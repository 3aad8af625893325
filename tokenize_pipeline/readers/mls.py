"""Multilingual LibriSpeech (MLS), unpacked or as the published archives. https://www.openslr.org/94

    mls_german/train/transcripts.txt    UTTERANCE, tab, transcript
    mls_german/train/segments.txt       UTTERANCE, tab, URL of the recording, tab, start, tab, end (seconds)
    mls_german/train/audio/SPEAKER/BOOK/UTTERANCE.flac

UTTERANCE is SPEAKER_BOOK_NUMBER; the numbers do not follow the recording. In `mls_german_opus` the sounds are
`.opus`. The inputs are `transcripts.txt` files, or archives (`mls_german.tar.gz`), of which the split `train`
is read. The corpus is Pratap et al., "MLS: a large-scale multilingual dataset for speech research",
arXiv 2012.03411.

A document is a run of utterances of one recording, sorted by time, that ends where a gap is longer than
0.2 s (SODA, arXiv 2602.16687). It is named after its first utterance: `mls_german/train/4800_10003_000000`.
The data root is the folder that holds `mls_german`, or the archives.

Both text files list the utterances book by book, so that one book is held at a time; of an archive their
content is held, and the documents come as the books stand in it.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._folders import common_folder, place_in
from tokenize_pipeline.readers._lines import RowError, content_lines, lines
from tokenize_pipeline.readers._rows import Repeats, no_row, repeat_error, uncut
from tokenize_pipeline.readers._tar import is_tar, members

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
    """Where a split stands: `mls_german/train`, its language and suffix, its archive if it is in one."""

    name: str
    language: str | None
    suffix: str
    archive: str | None


class _Row(NamedTuple):
    """A line of one of the text files: its UTTERANCE, what follows, its position, what is wrong."""

    book: Book | None
    utterance: str
    rest: str
    where: str
    error: RowError | None


def data_root(inputs: Sequence[Path]) -> Path:
    """The folder that holds `mls_…` or the archives; UserError for files that are neither."""
    return common_folder(path.parent if is_tar(path) else _top(path) for path in inputs)


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields the documents book by book."""
    root = data_root(inputs)
    for path in inputs:
        if is_tar(path):
            yield from _archive(path, place_in(root, path))
            continue
        folder = path.absolute().parent
        segments = folder / "segments.txt"
        if not segments.is_file():
            raise UserError(f"{segments} is missing, {path} needs it: unpack the whole corpus")
        split = _split(place_in(root, folder), None)
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
            raise UserError(f"{path} holds no train/{name}.txt: it is no archive of MLS")
    split = _split(found["transcripts"][0].rpartition("/")[0], archive)
    transcripts, segments = (
        _books(content_lines(content, f"{path}: {name}"), path.parent / name)
        for name, content in (found["transcripts"], found["segments"])
    )
    pairs = _pairs(transcripts, segments, str(path))
    for book, texts, times in sorted(pairs, key=lambda pair: order.get(pair[0], len(order))):
        yield from _documents(split, book, texts, times)


def _books(rows: Iterable[tuple[int, str]], path: Path) -> Iterator[tuple[Book, list[_Row]]]:
    """Yields (book, its rows) of one of the text files; a malformed line goes with its neighbours."""
    place = "/".join(path.parts[-3:])
    parsed = _parsed(rows, place)
    book: Book | None = None
    held: list[_Row] = []
    # The last field of a transcript is text, that of a segment is a time.
    for number, row in uncut(parsed) if path.stem == "transcripts" else parsed:
        if isinstance(row, RowError):
            row = (row.row or _Row(None, "", "", f"{place}:{number}", None))._replace(error=row)
        if row.book is not None:
            if book is not None and book != row.book:
                yield book, held
                held = []
            book = row.book
        held.append(row)
    if held:
        yield book or ("", ""), held


def _parsed(rows: Iterable[tuple[int, str]], place: str) -> Iterator[tuple[int, _Row | RowError]]:
    """Yields (number, row) of the lines that are not empty."""
    for number, line in rows:
        utterance, _, rest = line.strip().partition("\t")
        if matched := _UTTERANCE.fullmatch(utterance):
            book = (matched[1], matched[2])
            yield number, _Row(book, utterance, rest, f"{place}:{number}", None)
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
      UserError: if the files do not list the same books in the same order, each in one piece.
    """
    seen: set[Book] = set()
    for one, two in itertools.zip_longest(transcripts, segments):
        book = (one or two)[0]
        if one is None or two is None or one[0] != two[0] or book in seen:
            raise UserError(
                f"{name}: transcripts.txt and segments.txt do not list the same books in one order, at "
                f"{'_'.join(book)}: sort both, as in LC_ALL=C sort -o segments.txt segments.txt"
            )
        seen.add(book)
        yield book, one[1], two[1]


def _documents(
    split: _Split, book: Book, transcripts: list[_Row], segments: list[_Row]
) -> Iterator[DocumentSource | Rejected]:
    """Yields the rejected rows of a book and then its documents."""
    times: dict[str, tuple[_Segment, str]] = {}
    reported: set[str] = set()  # utterances of which the segment is lost
    for row in segments:
        try:
            found = _segment(row)
            first = times.setdefault(row.utterance, (found, row.where))
            # A segment that is there twice adds nothing: the transcript describes the utterance.
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
        start_at = 0
        for at in range(1, len(rows) + 1):
            # Times are given in hundredths: what binary fractions add must not part a gap of 0.2 s.
            if at == len(rows) or round(rows[at][0] - rows[at - 1][1], 3) > LONGEST_GAP:
                utterances = tuple(row[3] for row in rows[start_at:at])
                yield DocumentSource(f"{split.name}/{rows[start_at][2]}", utterances)
                start_at = at


def _utterance(split: _Split, book: Book, row: _Row, seconds: float) -> UtteranceSource:
    sound = f"{split.name}/audio/{book[0]}/{book[1]}/{row.utterance}{split.suffix}"
    return UtteranceSource(
        row.rest,
        split.archive or sound,
        speaker=book[0],
        language=split.language,
        member=sound if split.archive else None,
        seconds=seconds,
        where=row.where,
    )


def _segment(row: _Row) -> _Segment:
    """(URL, start, end) of a line of segments.txt; RowError if it does not give them."""
    if row.error is not None:
        raise row.error
    fields = row.rest.rsplit(None, 2)
    try:
        url, start, end = fields[0], float(fields[1]), float(fields[2])
    except (IndexError, ValueError):
        url, start, end = "", 0.0, 0.0
    if not 0 <= start < end < math.inf:
        raise RowError(f"{row.utterance!r} {row.rest[:200]!r} is no segment of a recording")
    return url, start, end
