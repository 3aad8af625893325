"""Selects the documents of a plan: each id once, and none that the data set already contains.

The corpus is read twice. The first pass finds the ids that occur more than once; the second pass keeps
the content of the first document for these ids only, so that memory does not grow with the corpus.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from soda_jax.data.format.shards import document_hash
from tokenize_pipeline.readers import DocumentSource, Reader, Rejected
from tokenize_pipeline.readers._rows import repeat_error

MAX_ID_BYTES = 65_535

Item = DocumentSource | Rejected


class Admission:
    """Selects the documents of a corpus for a plan."""

    def __init__(self, reader: Reader, inputs: Sequence[Path], known: Container[int]):
        """Reads nothing yet.

        Args:
          reader: yields the documents.
          inputs: files that it reads.
          known: `document_hash` of the documents that the data set already contains.
        """
        self._reader, self._inputs, self._known = reader, inputs, known
        self._repeated: set[int] = set()

    def first_pass(self, counts: Counter[str]) -> Iterator[Item]:
        """Yields the documents and rejected rows, without repeated and known documents.

        Args:
          counts: receives the number of known documents, `already_in_dataset`.
        """
        seen: set[int] = set()
        for item in self._reader.read(self._inputs):
            if isinstance(item, DocumentSource):
                if len(item.id.encode()) > MAX_ID_BYTES:
                    message = f"the document id has more than {MAX_ID_BYTES} bytes: {item.id[:40]}…"
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

    def second_pass(self, counts: Counter[str]) -> Iterator[Item]:
        """Yields the same documents, and a rejected row for each repeated one.

        An exact repeat is a `duplicate`. In a corpus of text it is only counted: texts without an id are
        named by their content, and repeats are common.

        Args:
          counts: receives the number of exact repeats, `repeated_in_input`.
        """
        firsts: dict[int, tuple[bytes, str]] = {}
        for item in self._reader.read(self._inputs):
            if not isinstance(item, DocumentSource) or len(item.id.encode()) > MAX_ID_BYTES:
                continue
            key = document_hash(item.id)
            if key in self._known:
                continue
            if key in self._repeated:
                content, where = _content(item), item.utterances[0].where
                if key in firsts:
                    same = firsts[key][0] == content
                    counts["repeated_in_input"] += same
                    if not same or self._reader.KIND == "speech":
                        error = repeat_error(f"document {item.id}", firsts[key][1], same=same)
                        yield Rejected(error.reason, str(error), where, item.id)
                    continue
                firsts[key] = (content, where)
            yield item


def _content(document: DocumentSource) -> bytes:
    """Returns a digest of texts and times, without paths: an input may be given twice under two names."""
    content = [(u.text.strip(), u.start, u.end) for u in document.utterances]
    return hashlib.sha256(json.dumps(content).encode()).digest()
