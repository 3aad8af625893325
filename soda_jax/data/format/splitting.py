"""Splits documents into records and joins them again.

A document is split at utterance boundaries into records of at most `limit` tokens. A longer
utterance is stored in several consecutive records: first pieces of its text, then pieces of its
audio.
"""

from collections.abc import Sequence

import numpy as np

from soda_jax.data.format.records import RecordData
from soda_jax.errors import UserError
from soda_jax.tokens.documents import Utterance
from soda_jax.tokens.vocabulary import VocabularyLayout

RECORD_TOKENS = 8192


def split_document(
    document_id: str,
    utterances: Sequence[Utterance],
    layout: VocabularyLayout,
    limit: int = RECORD_TOKENS,
) -> list[RecordData]:
    """Splits a document into records of at most `limit` tokens.

    The four markers of a whole utterance count toward `limit`; those of pieces, BOS and EOS do not.

    Args:
      document_id: id of the document, unique in its data set.
      utterances: utterances in order; all have text and audio, or there is one without audio.
      layout: the vocabulary layout, which defines the number of codebooks per frame.
      limit: maximum tokens per record; a piece of audio has at least one frame, even if a frame has
        more tokens than `limit`.

    Returns:
      At least one record; `first` is set on the first record and `last` on the last one. If the
      text of an utterance is split, the string is divided in proportion to the ids, so a piece may
      start inside a word; join the pieces before using the text.

    Raises:
      UserError: if there is no utterance, or one of several utterances has no audio.
    """
    speech = [len(utterance.codes) > 0 for utterance in utterances]
    if not utterances or any(speech) != all(speech) or (len(utterances) > 1 and not speech[0]):
        raise UserError(
            f"document {document_id} must have utterances of speech, or one utterance of text: "
            f"{sum(speech)} of its {len(utterances)} utterances have audio"
        )
    records: list[RecordData] = []
    if not speech[0]:
        records += _text_pieces(document_id, utterances[0], layout, limit, markers=False)
    held: list[Utterance] = []
    held_tokens = 0
    for utterance in utterances if speech[0] else ():
        tokens = 4 + len(utterance.text_ids) + len(utterance.codes) * layout.codebooks
        if held and held_tokens + tokens > limit:
            records.append(RecordData(document_id, held))
            held, held_tokens = [], 0
        if tokens > limit:
            records += _text_pieces(document_id, utterance, layout, limit, markers=True)
            records += _audio_pieces(document_id, utterance, layout, limit)
        else:
            held.append(utterance)
            held_tokens += tokens
    if held:
        records.append(RecordData(document_id, held))
    for number, record in enumerate(records):
        record.first, record.last = number == 0, number == len(records) - 1
    return records


def _text_pieces(
    document_id: str, utterance: Utterance, layout: VocabularyLayout, limit: int, markers: bool
) -> list[RecordData]:
    total, pieces = len(utterance.text_ids), []
    nothing = np.zeros((0, layout.codebooks), np.uint16)
    for start in range(0, total, limit):
        end = min(start + limit, total)
        text = utterance.text[
            len(utterance.text) * start // total : len(utterance.text) * end // total
        ]
        piece = Utterance(text, utterance.text_ids[start:end], nothing)
        opens, closes = markers and start == 0, markers and end == total
        pieces.append(RecordData(document_id, [piece], "text", opens, closes))
    return pieces


def _audio_pieces(
    document_id: str, utterance: Utterance, layout: VocabularyLayout, limit: int
) -> list[RecordData]:
    total, step = len(utterance.codes), max(1, limit // layout.codebooks)
    nothing = np.zeros(0, np.int32)
    return [
        RecordData(
            document_id,
            [Utterance("", nothing, utterance.codes[start : start + step])],
            "audio",
            opens=start == 0,
            closes=start + step >= total,
        )
        for start in range(0, total, step)
    ]


def join_records(records: Sequence[RecordData]) -> list[Utterance]:
    """Returns the utterances of a document, from all its records in stored order."""
    utterances: list[Utterance] = []
    texts: list[Utterance] = []
    audio: list[np.ndarray] = []
    for record in records:
        if record.part == "whole":
            utterances += record.utterances
        elif record.part == "text":
            texts += record.utterances
        else:
            audio += [utterance.codes for utterance in record.utterances]
        # An utterance in pieces ends with the record that closes its audio; a text document ends
        # with its last record.
        if texts and ((record.part == "audio" and record.closes) or (record.last and not audio)):
            utterances.append(
                Utterance(
                    "".join(piece.text for piece in texts),
                    np.concatenate([piece.text_ids for piece in texts]),
                    np.concatenate(audio) if audio else texts[0].codes,
                )
            )
            texts, audio = [], []
    return utterances
