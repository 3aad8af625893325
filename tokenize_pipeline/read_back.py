"""Texts of a data set that the tokenizer does not read back as they were, for the user to see.

Ids hold a text as the tokenizer's normalizer spells it (lower case, say), and a decoder may lose the
white space between words. That is the tokenizer's choice and no error, but the model learns it.
"""

import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from soda_jax.data.manifest import SPLITS, Manifest
from soda_jax.data.reading import read_records
from soda_jax.data.records import RecordData
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import load_tokenizer

TEXTS = 100
_SHOWN = 40  # characters of a text


def read_back(dataset: str | Path, manifest: Manifest) -> str:
    """A line on the first `TEXTS` texts of a data set; "" if all of them are read back.

    Texts that are equal under Unicode's canonical equivalence (NFC) count as equal.
    """
    tokenizer = load_tokenizer(Path(dataset) / "tokenizer")
    looked = list(islice(_utterances(Path(dataset), manifest), TEXTS))
    differ = []
    for utterance in looked:
        decoded = tokenizer.decode(utterance.text_ids)
        if _same_form(decoded) != _same_form(utterance.text):
            differ.append((utterance.text[:_SHOWN], decoded[:_SHOWN]))
    if not differ:
        return ""
    text, decoded = differ[0]
    return (
        f"  the tokenizer reads {len(differ)} of the first {len(looked)} texts back in another "
        f"spelling: {text!r} as {decoded!r}"
    )


def _same_form(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _utterances(dataset: Path, manifest: Manifest) -> Iterator[Utterance]:
    """The utterances that one record holds whole: pieces of a text are not cut where its ids are."""
    for split in SPLITS:
        for info in manifest.splits.get(split, ()):
            for record in read_records(dataset / split / info.file, manifest.layout):
                if not isinstance(record, RecordData):  # damaged
                    continue
                if record.part == "whole" or (record.first and record.last):
                    yield from record.utterances
