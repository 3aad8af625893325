"""Reports texts of a data set that change when they are encoded and decoded.

The normalizer of a tokenizer may change a text (to lower case, for example), and its decoder may drop
white space between words. This is not an error, but the model learns the changed spelling.
"""

import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from soda_jax.data.format.manifest import SPLITS, Manifest
from soda_jax.data.format.reading import read_records
from soda_jax.data.format.records import RecordData
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import load_tokenizer

TEXTS = 100
_SHOWN = 40  # characters of a text


def read_back(dataset: str | Path, manifest: Manifest) -> str:
    """Returns a line about the first `TEXTS` texts of a data set that change; "" if none does.

    Texts that are canonically equivalent in Unicode (equal in NFC) count as equal.
    """
    tokenizer = load_tokenizer(Path(dataset) / "tokenizer")
    utterances = list(islice(_whole_utterances(Path(dataset), manifest), TEXTS))
    differ = []
    for utterance in utterances:
        decoded = tokenizer.decode(utterance.text_ids)
        if _same_form(decoded) != _same_form(utterance.text):
            differ.append((utterance.text[:_SHOWN], decoded[:_SHOWN]))
    if not differ:
        return ""
    text, decoded = differ[0]
    return (
        f"  the tokenizer decodes {len(differ)} of the first {len(utterances)} texts with another "
        f"spelling: {text!r} as {decoded!r}"
    )


def _same_form(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _whole_utterances(dataset: Path, manifest: Manifest) -> Iterator[Utterance]:
    """Yields utterances that are whole in one record; in others, text and ids are split differently."""
    for split in SPLITS:
        for info in manifest.splits.get(split, ()):
            for record in read_records(dataset / split / info.file, manifest.layout):
                if not isinstance(record, RecordData):  # damaged
                    continue
                if record.part == "whole" or (record.first and record.last):
                    yield from record.utterances
