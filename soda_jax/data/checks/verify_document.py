"""Whether a stored document, rendered as training renders it and parsed again, is itself."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from soda_jax.data.format.records import PARTS, Header, RecordData
from soda_jax.data.format.rendering import Renderer
from soda_jax.data.format.splitting import join_records
from soda_jax.data.source import rendered_order
from soda_jax.errors import UserError
from soda_jax.tokens.documents import Utterance, View, parse
from soda_jax.tokens.vocabulary import VocabularyLayout

SPEECH_VIEWS = (
    View("text_first"),
    View("audio_first"),
    View(composition="S+A"),
    View(composition="S"),
    View(composition="text"),
)
TEXT_VIEWS = (View(composition="text"),)


@dataclasses.dataclass(frozen=True)
class StoredRecord:
    """A record as it lies in its shard.

    Attributes:
      number: its place in the shard.
      content: its bytes.
      header: what `read_header` finds in them.
      data: what `decode_record` makes of them.
    """

    number: int
    content: bytes
    header: Header
    data: RecordData


def document_fault(
    records: Sequence[StoredRecord], renderers: Sequence[Renderer], layout: VocabularyLayout
) -> str:
    """What is wrong with a document, in words; "" if nothing is.

    Args:
      records: all of its records, in stored order.
      renderers: one for each view under which it must come back.
      layout: the vocabulary of the records.
    """
    try:
        utterances = join_records([record.data for record in records])
        for renderer in renderers:
            found = parse(_rendered(records, renderer), layout, renderer.codebooks).utterances
            if not _same(found, utterances, renderer):
                return f"under {_name(renderer.view)} it is parsed as other utterances"
    except (UserError, ValueError, IndexError) as error:
        return f"it cannot be rendered and parsed: {error}"
    return ""


def _name(view: View) -> str:
    return f"{view.composition}, {view.order}" if view.composition == "S+A+T" else view.composition


def _rendered(records: Sequence[StoredRecord], renderer: Renderer) -> np.ndarray:
    """Token ids of the document, int32 `[tokens]`, by the code that fills the windows of a run."""
    headers = [record.header for record in records]
    columns = ("flags", "utterances", "text_tokens", "frames")
    flags, *counts = (np.array([getattr(h, name) for h in headers]) for name in columns)
    part = np.array([PARTS.index(record.data.part) for record in records])
    order = rendered_order(part, flags, renderer.view.order)
    lengths = renderer.lengths(part, flags, *counts)[order]
    lengths[0] += 1
    lengths[-1] += 1
    stops = lengths.cumsum()
    out = np.empty(int(stops[-1]), np.int32)
    for place, number in enumerate(order.tolist()):
        begins, ends = place == 0, place == len(order) - 1
        length, stop = int(lengths[place]), int(stops[place])
        record = records[number]
        renderer.tokens(
            record.content, record.header, begins, ends, 0, length, out[stop - length : stop]
        )
    return out


def _same(found: Sequence[Utterance], stored: Sequence[Utterance], renderer: Renderer) -> bool:
    """Whether what was parsed is what is stored, as far as the view shows it."""
    if not renderer.view.has_audio:  # one stretch of text, without marks between the utterances
        ids = np.concatenate([utterance.text_ids for utterance in stored])
        return len(found) == 1 and np.array_equal(found[0].text_ids, ids)
    return len(found) == len(stored) and all(
        np.array_equal(a.codes, b.codes[:, : renderer.codebooks])
        and (not renderer.view.has_text or np.array_equal(a.text_ids, b.text_ids))
        for a, b in zip(found, stored, strict=True)
    )
