"""Renders documents as token streams (`render`) and parses token streams (`parse`, the inverse).

The grammar, with no separators or white space between the symbols:

    text-first    BOS ( text_start T text_end audio_start A audio_end )+ EOS
    audio-first   BOS ( audio_start A audio_end text_start T text_end )+ EOS
    audio only    BOS ( audio_start A audio_end )+ EOS          compositions S+A and S
    text only     BOS T EOS                                     composition text

T is one or more text tokens, and A is one or more whole frames.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.tokens.grammar import grammar
from soda_jax.tokens.vocabulary import VocabularyLayout

ORDERS = ("text_first", "audio_first")
COMPOSITIONS = ("S+A+T", "S+A", "S", "text")


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """A segment of speech with its transcript, or a segment of text without audio.

    Attributes:
      text: the transcript.
      text_ids: ordinary text ids of the transcript, int32 `[tokens]`.
      codes: codec indices, uint16 `[frames, codebooks]`; `[0, codebooks]` for text without audio.
    """

    text: str
    text_ids: np.ndarray
    codes: np.ndarray


@dataclasses.dataclass(frozen=True)
class View:
    """Options for rendering a stored document as a token stream.

    Attributes:
      order: "text_first" or "audio_first"; used only for the composition S+A+T.
      composition: "S+A+T", "S+A" (text spans removed), "S" (codebook 0 only) or "text".
      codebooks: number of codebooks in the stream (0 = all); ignored for S, which always has one.
    """

    order: str = "text_first"
    composition: str = "S+A+T"
    codebooks: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise UserError(f"order {self.order!r} is unknown: use one of {', '.join(ORDERS)}")
        if self.composition not in COMPOSITIONS:
            names = ", ".join(COMPOSITIONS)
            raise UserError(f"composition {self.composition!r} is unknown: use one of {names}")

    @property
    def has_text(self) -> bool:
        """Whether the stream has text."""
        return self.composition in ("S+A+T", "text")

    @property
    def has_audio(self) -> bool:
        """Whether the stream has audio."""
        return self.composition != "text"

    def shown_codebooks(self, layout: VocabularyLayout) -> int:
        """Returns the number of codebooks in the stream; raises UserError if `layout` has fewer."""
        count = 1 if self.composition == "S" else self.codebooks or layout.codebooks
        if not 0 < count <= layout.codebooks:
            raise UserError(f"the view has {count} codebooks, the layout has {layout.codebooks}")
        return count


def most_codebooks(views: Iterable[Mapping[str, Any]], layout: VocabularyLayout) -> int:
    """Returns the largest number of codebooks in streams with audio; that of `layout` if there is none.

    Args:
      views: dicts with `composition` and `codebooks`, as in the metadata of a checkpoint.
      layout: the vocabulary.
    """
    found = (View(composition=v["composition"], codebooks=v["codebooks"]) for v in views)
    return max((v.shown_codebooks(layout) for v in found if v.has_audio), default=layout.codebooks)


@dataclasses.dataclass(frozen=True, eq=False)
class Parsed:
    """The result of `parse`.

    Attributes:
      view: the view with which `render` returns the stream; `order` is "text_first" unless the
        composition is S+A+T.
      utterances: text ids and codes in document order. `text` is empty, because the stream does not
        contain it. A text-only stream is a single utterance.
    """

    view: View
    utterances: tuple[Utterance, ...]


def text_span(
    text_ids: np.ndarray, layout: VocabularyLayout, opens: bool = True, closes: bool = True
) -> np.ndarray:
    """Returns `text_start T text_end` as int32 ids.

    Args:
      text_ids: ordinary text ids `[tokens]`.
      layout: the vocabulary.
      opens: whether to include `text_start`.
      closes: whether to include `text_end`.
    """
    body = np.asarray(text_ids, np.int32)
    return _span(body, layout.text_start, layout.text_end, opens, closes)


def audio_span(
    codes: np.ndarray,
    layout: VocabularyLayout,
    codebooks: int,
    opens: bool = True,
    closes: bool = True,
) -> np.ndarray:
    """Returns `audio_start A audio_end` as int32 ids.

    Args:
      codes: integers `[frames, n]`.
      layout: the vocabulary.
      codebooks: number of columns of `codes` to use.
      opens: whether to include `audio_start`.
      closes: whether to include `audio_end`.

    Raises:
      UserError: if `codes` has fewer than `codebooks` columns, or a code is outside its codebook.
    """
    if codes.shape[1] < codebooks:
        raise UserError(f"codes have {codes.shape[1]} codebooks, the view needs {codebooks}")
    body = layout.codes_to_ids(codes[:, :codebooks])
    return _span(body, layout.audio_start, layout.audio_end, opens, closes)


def _span(body: np.ndarray, first: int, last: int, opens: bool, closes: bool) -> np.ndarray:
    span = np.empty(len(body) + opens + closes, np.int32)
    span[int(opens) : int(opens) + len(body)] = body
    if opens:
        span[0] = first
    if closes:
        span[-1] = last
    return span


def render(utterances: Sequence[Utterance], view: View, layout: VocabularyLayout) -> np.ndarray:
    """Returns the token stream of a whole document.

    Args:
      utterances: at least one; each must contain the text and audio that the view shows.
      view: order, composition and codebooks.
      layout: the vocabulary.

    Returns:
      int32 ids `[tokens]`, from BOS to EOS.

    Raises:
      UserError: if the document or a span is empty, a text contains a special id, or the codes do
        not match the layout.
    """
    if not utterances:
        raise UserError("the document is empty: it needs at least one utterance")
    pieces = [np.array([layout.bos], np.int32)]
    codebooks = view.shown_codebooks(layout) if view.has_audio else 0
    for number, utterance in enumerate(utterances):
        spans = []
        if view.has_text:
            _check_text(utterance.text_ids, layout, number)
            spans.append(
                np.asarray(utterance.text_ids, np.int32)
                if view.composition == "text"
                else text_span(utterance.text_ids, layout)
            )
        if view.has_audio:
            if not len(utterance.codes):
                raise UserError(f"utterance {number} has no audio, which {view.composition} needs")
            spans.append(audio_span(utterance.codes, layout, codebooks))
        pieces += spans if view.order == "text_first" else spans[::-1]
    pieces.append(np.array([layout.eos], np.int32))
    return np.concatenate(pieces)


def _check_text(text_ids: np.ndarray, layout: VocabularyLayout, number: int) -> None:
    ids = np.asarray(text_ids, np.int64)
    if not len(ids):
        raise UserError(f"utterance {number} has no text")
    inside = (ids >= 0) & (ids < layout.size)
    ordinary = layout.ordinary_text[np.where(inside, ids, layout.bos)]
    if not ordinary.all():
        position = int(np.argmin(ordinary))
        raise UserError(
            f"utterance {number}: id {ids[position]} at text position {position} is not ordinary text"
        )


def parse(ids: np.ndarray, layout: VocabularyLayout, codebooks: int = 0) -> Parsed:
    """Parses a complete token stream; `render` converts the result back to `ids`.

    Args:
      ids: integers `[tokens]`.
      layout: the vocabulary.
      codebooks: number of codebooks in the stream (0 = all).

    Raises:
      UserError: if the grammar does not allow a token (the message contains its position and what
        was expected), the stream ends inside a document, or the document is a translation, which no
        view describes.
    """
    codebooks = codebooks or layout.codebooks
    rules = grammar(layout, codebooks)
    ids = np.asarray(ids, np.int64)
    state = rules.start
    # Lists, because indexing a NumPy array element by element is several times slower.
    for position, group in enumerate(rules.groups_of(ids).tolist()):
        following = rules.rows[state][group]
        if following < 0:
            token = int(ids[position])
            due = ", ".join(rules.legal_groups(state)) or "nothing (the document has ended)"
            found = rules.name_of(token) if 0 <= token < layout.size else "outside the vocabulary"
            raise UserError(
                f"token {token} ({found}) at position {position} is not legal: expected {due}"
            )
        state = following
    if state != rules.end:
        due = ", ".join(rules.legal_groups(state))
        raise UserError(f"the stream ends at position {len(ids)} inside a document: expected {due}")
    return _collect(ids, layout, codebooks)


def _collect(ids: np.ndarray, layout: VocabularyLayout, codebooks: int) -> Parsed:
    """Splits a legal stream into utterances; raises UserError for a translation."""
    empty_text = np.zeros(0, np.int32)
    empty_codes = np.zeros((0, codebooks), np.uint16)
    opening = np.flatnonzero((ids == layout.text_start) | (ids == layout.audio_start))
    if not len(opening):
        text = Utterance("", ids[1:-1].astype(np.int32), empty_codes)
        return Parsed(View("text_first", "text"), (text,))
    closing = np.flatnonzero((ids == layout.text_end) | (ids == layout.audio_end))
    texts, audios = [], []
    for first, last in zip(opening.tolist(), closing.tolist(), strict=True):
        body = ids[first + 1 : last]
        if ids[first] == layout.text_start:
            texts.append(body.astype(np.int32))
        else:
            audios.append(layout.ids_to_codes(body, codebooks))
    order = "text_first" if ids[1] == layout.text_start else "audio_first"
    shown = 0 if codebooks == layout.codebooks else codebooks
    if not texts:
        composition = "S" if codebooks == 1 and layout.codebooks > 1 else "S+A"
        view = View("text_first", composition, 0 if composition == "S" else shown)
        return Parsed(view, tuple(Utterance("", empty_text, codes) for codes in audios))
    kinds = ids[opening]
    if (kinds[1:] == kinds[:-1]).any():
        raise UserError(
            "the document is a translation (audio, text, text, audio), which parse cannot split into "
            "utterances"
        )
    pairs = zip(texts, audios, strict=True)
    return Parsed(View(order, "S+A+T", shown), tuple(Utterance("", t, a) for t, a in pairs))
