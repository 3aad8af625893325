"""Computes the legal set of every position of a window.

The set depends on the tokens before the window as well. The state of the automaton there is computed
from the shard index and the counts of one record: a short stream is made that leads to the same state.
"""

from typing import Protocol

import numpy as np

from soda_jax.data.format.records import (
    AUDIO,
    CLOSES,
    FIRST,
    OPENS,
    PART_MASK,
    PART_SHIFT,
    TEXT,
    WHOLE,
    read_counts,
    read_header,
)
from soda_jax.data.format.shards import ShardIndex
from soda_jax.errors import UserError
from soda_jax.tokens.documents import View
from soda_jax.tokens.partition import Partition, partition
from soda_jax.tokens.vocabulary import VocabularyLayout

# Number in a batch for a position without a target.
NO_SET = 255
# Every further utterance of a document leads to a state that this number of utterances leads to.
_UTTERANCES = 2


class Prefixes:
    """Makes short streams that lead to the same state as the tokens before a position of a source.

    Attributes:
      partition: the legal sets of the stream.
    """

    def __init__(self, layout: VocabularyLayout, view: View, index: ShardIndex, order: np.ndarray):
        """Counts the utterances before each record.

        Args:
          layout: the vocabulary.
          view: the view under which the split is rendered.
          index: index of the split.
          order: number of the record at each rendered position, `[records]`.
        """
        self.partition = partition(layout, view.shown_codebooks(layout) if view.has_audio else 0)
        self._view, self._layout, self._index, self._order = view, layout, index, order
        spans = [AUDIO] if not view.has_text else [TEXT, AUDIO] if view.has_audio else []
        self._spans = spans[::-1] if view.order == "audio_first" else spans
        part, flags = index.part[order], index.flags[order]
        closes = (flags & CLOSES) > 0
        last = part == self._spans[-1] if spans else np.zeros(len(part), bool)
        completed = np.where(part == WHOLE, index.utterances[order], last & closes)
        before = np.cumsum(completed) - completed
        # BOS is at the position of the first record in stored order.
        starts = np.flatnonzero(index.flags & FIRST)
        document = np.cumsum((index.flags & FIRST) > 0) - 1
        before -= before[starts][document] if len(starts) else 0
        self._completed = np.minimum(before, _UTTERANCES).astype(np.int8)

    def state(self, position: int, offset: int, record: bytes | None) -> int:
        """Returns the state before a token of a record.

        Args:
          position: position of the record in rendered order.
          offset: index of the token in the rendered record, BOS included.
          record: bytes of the record; may be None if `offset` is 0.
        """
        rules = self.partition.rules
        begins = bool(self._index.flags[position] & FIRST)
        if begins and not offset:
            return rules.start
        number = self._order[position]
        flags = int(self._index.flags[number])
        completed = int(self._completed[position])
        part = flags >> PART_SHIFT & PART_MASK
        offset -= begins
        if not self._spans:  # text without markers
            inside = self._shortened(TEXT, int(not begins or offset > 0))
        elif part == WHOLE:
            utterances, inside = self._in_utterances(record, offset) if offset else (0, [])
            completed = min(completed + utterances, _UTTERANCES)
        else:
            opens = bool(flags & OPENS)
            earlier = self._spans[: self._spans.index(part)]
            inside = [token for span in earlier for token in self._span(span, None)]
            # Before the first token of a piece that does not open the span, the span has content.
            unit = 1 if part == TEXT else self.partition.codebooks
            length = int(self._index.text_tokens[number] if part == TEXT else self._frames(number))
            skipped = 0 if opens else 1 + unit
            inside += self._span(part, offset + skipped, length + (0 if opens else unit))
        prefix = [self._layout.bos]
        prefix += completed * [t for span in self._spans for t in self._span(span, None)]
        return rules.run(np.array(prefix + inside))

    def _frames(self, number: int) -> int:
        return int(self._index.frames[number]) * self.partition.codebooks

    def _in_utterances(self, record: bytes | None, offset: int) -> tuple[int, list[int]]:
        """Returns the number of whole utterances before a token of a record, and a short rest."""
        assert record is not None
        counts = read_counts(record, read_header(record, self._layout)).astype(np.int64)
        content = {TEXT: counts[:, 1], AUDIO: counts[:, 2] * self.partition.codebooks}
        lengths = [content[span] + 2 for span in self._spans]
        stops = np.cumsum(sum(lengths))
        utterance = int(np.searchsorted(stops, offset, side="right"))
        offset -= int(stops[utterance - 1]) if utterance else 0
        rest: list[int] = []
        for span, length in zip(self._spans, lengths, strict=True):
            if utterance == len(stops) or offset <= 0:
                break
            size = int(length[utterance])
            rest += self._span(span, min(offset, size), size - 2)
            offset -= size
        return utterance, rest

    def _span(self, span: int, tokens: int | None, content: int = 0) -> list[int]:
        """Returns a short form of the first `tokens` tokens of a span, None for a whole one."""
        start, end = self._layout.text_start, self._layout.text_end
        if span == AUDIO:
            start, end = self._layout.audio_start, self._layout.audio_end
        if tokens is None:
            unit = 1 if span == TEXT else self.partition.codebooks
            return [start, *self._shortened(span, unit), end]
        if tokens == 0:
            return []
        inside = self._shortened(span, min(tokens - 1, content))
        return [start, *inside, *[end] * (tokens - 1 > content)]

    def _shortened(self, span: int, tokens: int) -> list[int]:
        """Returns at most one frame and a part of one, or at most one text token."""
        if span == TEXT:
            ordinary = int(np.argmax(self._layout.ordinary_text))
            return [ordinary] * min(tokens, 1)
        frame = self._layout.codebook_offsets[: self.partition.codebooks].tolist()
        whole, rest = divmod(tokens, len(frame))
        return frame * min(whole, 1) + frame[:rest]


class Streams(Protocol):
    """The part of `Source` that `window_sets` needs."""

    name: str

    def state(self, start: int) -> tuple[Partition, int]:
        """Returns the partition at token `start`, and the state before this token."""
        ...


def window_sets(
    source: Streams, start: int, tokens: np.ndarray, holes: list[tuple[int, int]], out: np.ndarray
) -> None:
    """Writes the legal set of the target of every position of a window into `out`.

    Args:
      source: the source of the window.
      start: index of the first token in the source.
      tokens: the window, int32 `[tokens]`.
      holes: ranges of masked or damaged tokens, see `Source.read`.
      out: uint8 `[tokens]`; a number in `partition(layout).sets`, or `NO_SET` if the next token is not in
        the window, or this or the next token is in a hole.

    Raises:
      UserError: if a token is not legal.
    """
    out[:] = NO_SET
    begins = [0, *(last for _, last in holes)]
    ends = [*(first for first, _ in holes), len(tokens)]
    for begin, end in zip(begins, ends, strict=True):
        if end - begin < 2:
            continue
        rules, state = source.state(start + begin)
        try:
            states = rules.states(tokens[begin:end], state)
        except UserError as error:
            raise UserError(
                f"source {source.name}, tokens {start + begin} to {start + end}: {error}; repair the data "
                "set, or use model.head=full"
            ) from None
        out[begin : end - 1] = rules.joint_numbers[rules.set_of_state[states[:-1]]]
