"""Reads LibriSpeech, unpacked or as the published archives, with one document per chapter.

https://www.openslr.org/12

    LibriSpeech/dev-clean/84/121123/84-121123.trans.txt
    LibriSpeech/dev-clean/84/121123/84-121123-0000.flac

A line of a `.trans.txt` consists of an utterance id, a space and a transcript in capitals. The
inputs are `.trans.txt` files, or the published archives (`dev-clean.tar.gz`, …), where the lengths
of the utterances are estimated from the file sizes. README.TXT in each archive describes the
layout. Reference: Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio
books", ICASSP 2015.

Text is lower-cased, as in SODA's validation data, because all transcripts are in capitals. Ids
are `librispeech/SUBSET/SPEAKER-CHAPTER`. The data root is the folder that contains `LibriSpeech` or
the archives.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected
from tokenize_pipeline.readers._corpus import Layout, Sounds, TextFile
from tokenize_pipeline.readers._rows import Repeats, RowError, no_row, parse_rows

KIND = "speech"
_LAYOUT = Layout(
    "LibriSpeech",
    "LibriSpeech/SUBSET/SPEAKER/CHAPTER/*.trans.txt",
    r"[^/]+/[^/]+/\d+/\d+/[^/]+\.trans\.txt",
    (".trans.txt",),
)
_CHAPTER = re.compile(r"(.*/)?([^/]+)/(\d+)/(\d+)/([^/]+)", re.ASCII)

data_root = _LAYOUT.data_root


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields the chapters, in the order of the files or of the archives."""
    for path, files, sounds in _LAYOUT.open(inputs):
        for file in files:
            yield from _chapter(path, file, sounds)


def _chapter(path: Path, file: TextFile, sounds: Sounds) -> Iterator[DocumentSource | Rejected]:
    """Yields the rejected rows of one `.trans.txt`, then its document if a row is usable."""
    matched = _CHAPTER.fullmatch(file.name)
    if matched is None:
        raise UserError(f"{path} contains {file.name}: it is not an archive of LibriSpeech")
    _, subset, speaker, number, name = matched.groups()
    chapter = f"{speaker}-{number}"
    document = f"librispeech/{subset}/{chapter}"
    folder = file.name.rpartition("/")[0]
    identity = re.compile(rf"{chapter}-\d+", re.ASCII)

    def parse(line: str) -> tuple[str, str]:
        utterance, _, text = line.strip().partition(" ")
        if identity.fullmatch(utterance):
            return utterance, text
        message = f"{utterance[:80]!r} is not the id of an utterance of chapter {chapter}"
        attempt = re.match(r"\d+-", utterance, re.ASCII) is not None
        raise no_row(line, message, attempt=attempt)

    utterances, repeats = [], Repeats()
    for line_number, row in parse_rows(file.lines, parse, text_is_last=True):
        where = f"{subset}/{name}:{line_number}"
        try:
            if isinstance(row, RowError):
                raise row
            utterance, text = row
            repeats.check(utterance, text.strip(), where, utterance)
        except RowError as error:
            yield error.rejected(where, document)
            continue
        sound = f"{folder}/{utterance}.flac"
        utterances.append(
            sounds.utterance(sound, text.lower(), where, speaker=speaker, language="en")
        )
    if utterances:
        yield DocumentSource(document, tuple(utterances))
