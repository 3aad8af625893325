"""Which documents of a corpus a plan takes: each id once, and none that the data set has already.

The corpus is read twice. The first reading finds which ids occur more than once; of those alone the second
one remembers what the first document said, so that memory does not grow with the corpus.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from soda_jax.data.shards import document_hash
from tokenize_pipeline.readers import DocumentSource, Reader, Rejected
from tokenize_pipeline.readers._rows import repeat_error

LONGEST_ID = 65_535

Item = DocumentSource | Rejected


class Admission:
    """The documents of a corpus that a plan takes."""

    def __init__(self, reader: Reader, inputs: Sequence[Path], known: Container[int]):
        """Reads nothing yet.

        Args:
          reader: yields the documents.
          inputs: what it reads.
          known: `document_hash` of the documents that the data set already has.
        """
        self._reader, self._inputs, self._known = reader, inputs, known
        self._repeated: set[int] = set()

    def first_reading(self, counts: Counter[str]) -> Iterator[Item]:
        """Yields the documents and what the reader rejects, without repeated and known documents.

        Args:
          counts: gets the number of known documents, `already_in_dataset`.
        """
        seen: set[int] = set()
        for item in self._reader.read(self._inputs):
            if isinstance(item, DocumentSource):
                if len(item.id.encode()) > LONGEST_ID:
                    message = f"the document id has more than {LONGEST_ID} bytes: {item.id[:40]}…"
                    yield Rejected("malformed_row", message, item.utterances[0].where)
                    continue
                key = document_hash(item.id)
                if key in self._known:
                    counts["already_in_dataset"] += 1
                    continue
                if key in seen:
                    self._repeated.add(key)
                    continue
                seen.add(key)
            yield item

    def second_reading(self, counts: Counter[str]) -> Iterator[Item]:
        """Yields the same documents, and what is to be reported of repeated ones.

        A document that was there before with the same content is a `duplicate`. For a corpus of text it is
        only counted: there a text without an id is named by its content, and repeats are common.

        Args:
          counts: gets the number of exact repeats, `repeated_in_input`.
        """
        seen: set[int] = set()
        firsts: dict[int, tuple[bytes, str]] = {}
        for item in self._reader.read(self._inputs):
            if not isinstance(item, DocumentSource) or len(item.id.encode()) > LONGEST_ID:
                continue
            key = document_hash(item.id)
            if key in self._known:
                continue
            if key in self._repeated:
                content, where = _content(item), item.utterances[0].where
                first, first_where = firsts.setdefault(key, (content, where))
                if key in seen:
                    same = first == content
                    counts["repeated_in_input"] += same
                    if not same or self._reader.KIND == "speech":
                        error = repeat_error(f"document {item.id}", first_where, same=same)
                        yield Rejected(error.reason, str(error), where, item.id)
                    continue
                seen.add(key)
            yield item


def _content(document: DocumentSource) -> bytes:
    """Digest of texts and times: not of where the sounds are, as a corpus may be given twice."""
    said = [(u.text.strip(), u.start, u.end) for u in document.utterances]
    return hashlib.sha256(json.dumps(said).encode()).digest()
