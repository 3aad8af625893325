"""Reads corpora as descriptions of documents, with one reader per format.

A reader is a module of this package, selected by its name (`--format`). It defines

    KIND = "speech" | "text"
    def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]

`read` reads only metadata, not audio. It is called twice and must yield the same documents in the
same order. A module may also define `data_root(inputs: Sequence[Path]) -> Path`, the folder that
audio paths are relative to. Errors that do not depend on the format (empty text, invalid times,
missing files, paths outside the data root) are detected later, by code that all readers share.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from soda_jax.errors import UserError
from tokenize_pipeline.text_faults import text_fault


@dataclass(frozen=True)
class UtteranceSource:
    """One utterance, as described by the corpus.

    Attributes:
      text: the transcript; surrounding white space is removed later.
      audio: path of a sound file, or of the archive that contains it, absolute or relative to the
        data root; None for text without audio.
      start: start of the utterance in the file, in seconds; None for the beginning.
      end: end of the utterance in the file, in seconds; None for the end.
      speaker: name of the speaker, if known.
      language: language code, if known.
      member: the sound in the archive `audio`, as the name of a member of a `.tar`, `.tar.gz` or
        `.tgz`, or as "COLUMN/ROWGROUP/ROW" of a `.parquet`. None if `audio` is a sound file.
      seconds: length according to the metadata of the corpus; used for planning only.
      where: position of the row with this utterance, such as `manifest.jsonl:17`.
    """

    text: str
    audio: str | None = None
    start: float | None = None
    end: float | None = None
    speaker: str | None = None
    language: str | None = None
    member: str | None = None
    seconds: float | None = None
    where: str = ""


@dataclass(frozen=True)
class DocumentSource:
    """A document, with an id that is unique in the corpus and the same in every run."""

    id: str
    utterances: tuple[UtteranceSource, ...]


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used and is quarantined, such as a malformed or repeated row.

    Attributes:
      reason: a key of `tokenize_pipeline.quarantine.REASONS`.
      message: error message of one line.
      where: position of the row, such as `manifest.jsonl:17`.
      document: the document id, if it could be read.
    """

    reason: str
    message: str
    where: str
    document: str | None = None


class Reader(Protocol):
    """The names that every reader module defines."""

    KIND: str

    def read(self, inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
        """Yields descriptions of documents, in the same order at each call."""


def reader_names() -> list[str]:
    """Returns the names of the formats: the modules of this package that do not start with `_`."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def find_reader(name: str) -> Reader:
    """Returns the reader of format `name`; raises UserError if it is unknown."""
    if name not in reader_names():
        raise UserError(f"--format={name} is unknown: use one of {', '.join(reader_names())}")
    return cast(Reader, importlib.import_module(f"{__name__}.{name}"))


def texts(items: Iterable[DocumentSource | Rejected]) -> Iterator[str]:
    """Yields the stripped texts of a reader's documents; skips rejected rows and unusable texts."""
    for item in items:
        for utterance in item.utterances if isinstance(item, DocumentSource) else ():
            text = utterance.text.strip()
            if text_fault(text) is None:
                yield text
