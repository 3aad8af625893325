"""What a reader is: one corpus format, turned into descriptions of documents.

A reader is one module of this package, and `--format` takes its name. It holds

    KIND = "speech" | "text"
    def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]

`read` looks at metadata only (no audio is opened) and yields the same documents in the same order
each time; it is called twice. What can be judged without knowing the corpus (empty text, times, missing
files, paths outside the data root) is judged later, once for all readers.
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
    """One utterance as the corpus describes it.

    Attributes:
      text: the transcript; outer white space is removed when it is tokenised.
      audio: path of a sound file, relative to the data root or absolute, or of an archive that holds
        it; None for text alone.
      start: first second of the utterance in the file; None for the beginning.
      end: last second of the utterance in the file; None for its end.
      speaker: who speaks, if known.
      language: language code, if known.
      member: where in the archive `audio` the sound lies: the name of a member of a `.tar`, `.tar.gz`
        or `.tgz`, or "COLUMN/ROWGROUP/ROW" of a `.parquet`. None: `audio` is the sound file itself.
      seconds: how long the utterance is by the metadata of the corpus; for planning, never trusted.
      where: the place that describes it, such as `manifest.jsonl:17`.
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
    """A document: its id, unique in the corpus and stable between runs, and its utterances in order."""

    id: str
    utterances: tuple[UtteranceSource, ...]


@dataclass(frozen=True)
class Rejected:
    """A row that describes no utterance; it goes to quarantine.

    Attributes:
      reason: a key of `tokenize_pipeline.quarantine.REASONS`.
      message: what is wrong, in one line.
      where: the place of the row, such as `manifest.jsonl:17`.
      document: the document id, if it could be read.
    """

    reason: str
    message: str
    where: str
    document: str | None = None


class Reader(Protocol):
    """The two names that a reader module holds."""

    KIND: str

    def read(self, inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
        """Yields descriptions of documents in a stable order."""


def reader_names() -> list[str]:
    """Names of the formats: the modules of this package that do not begin with `_`."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def find_reader(name: str) -> Reader:
    """The reader of format `name`; UserError with the known names if there is none."""
    if name not in reader_names():
        raise UserError(f"--format={name} is unknown: one of {', '.join(reader_names())}")
    return cast(Reader, importlib.import_module(f"{__name__}.{name}"))


def texts(items: Iterable[DocumentSource | Rejected]) -> Iterator[str]:
    """The stripped texts of what a reader yields, without rejected rows and texts with a fault."""
    for item in items:
        for utterance in item.utterances if isinstance(item, DocumentSource) else ():
            text = utterance.text.strip()
            if text_fault(text) is None:
                yield text
