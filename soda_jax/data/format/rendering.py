"""Renders packed records as token ids under a view, for any range of tokens.

A rendered record is a sequence of *pieces*: markers, the text ids of one utterance, or the audio
ids of one utterance. All pieces are slices of one pool (markers, then text, then audio). The
offsets and lengths of the pieces are computed for all utterances at once, and one `take` gathers
the tokens.
"""

from typing import Any

import numpy as np

from soda_jax.data.format.bits import packing
from soda_jax.data.format.records import (
    AUDIO,
    CLOSES,
    OPENS,
    PART_MASK,
    PART_SHIFT,
    TEXT,
    WHOLE,
    Header,
    read_counts,
)
from soda_jax.tokens.documents import View
from soda_jax.tokens.vocabulary import VocabularyLayout

# Offsets of the markers in the pool, and their number. text_start occurs twice, so that the two
# markers between text and audio are adjacent in the pool for both orders.
_BOS, _EOS, _TEXT_START, _TEXT_END, _AUDIO_START, _AUDIO_END, _TEXT_START_AGAIN, _MARKERS = range(8)


class Renderer:
    """Renders records of one layout under one view; thread-safe."""

    def __init__(self, layout: VocabularyLayout, view: View):
        """Sets up the renderer; raises UserError if `layout` has too few codebooks for `view`."""
        self.view, self.layout = view, layout
        self.codebooks = view.shown_codebooks(layout) if view.has_audio else 0
        self._text_bits = packing((layout.text_size,))
        self._code_bits = packing(layout.codebook_sizes) if view.has_audio else None
        text_start, text_end = layout.text_start, layout.text_end
        audio_start, audio_end = layout.audio_start, layout.audio_end
        markers = (layout.bos, layout.eos, text_start, text_end, audio_start, audio_end, text_start)
        self._markers = np.array(markers, np.int32)
        self._offsets = self._make_offsets(0)

    def lengths(
        self, part: np.ndarray, flags: np.ndarray, utterances: np.ndarray, text_tokens: np.ndarray,
        frames: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Returns the number of tokens of each record, without BOS and EOS, int64 `[records]`."""
        text = text_tokens.astype(np.int64) * self.view.has_text
        total = text + frames.astype(np.int64) * self.codebooks
        if self.view.composition != "text":
            spans = 2 * (int(self.view.has_text) + 1)
            edges = (flags & OPENS > 0).astype(np.int64) + (flags & CLOSES > 0)
            edges[(part == TEXT) & (not self.view.has_text)] = 0
            total += np.where(part == WHOLE, spans * utterances.astype(np.int64), edges)
        return total

    def tokens(
        self, record: bytes, header: Header, begins: bool, ends: bool, first: int, last: int,
        out: np.ndarray,
    ) -> None:  # fmt: skip
        """Writes rendered tokens [first, last) of a record into `out`, int32 `[last − first]`.

        Args:
          record: bytes of the record.
          header: header of the record.
          begins: whether BOS precedes the record in rendered order.
          ends: whether EOS follows the record in rendered order.
          first: index of the first token in the rendered record.
          last: index of the last token + 1.
          out: output array.
        """
        audio_start = _MARKERS + header.text_tokens * self.view.has_text
        sources, lengths = self._pieces(record, header, begins, ends, audio_start)
        stops = lengths.cumsum()
        starts = stops - lengths
        if first > 0 or last < stops[-1]:
            low = np.maximum(starts, first)
            lengths = np.minimum(stops, last) - low
            kept = np.flatnonzero(lengths > 0)
            sources, lengths = (sources + (low - starts))[kept], lengths[kept]
            starts = low[kept] - first
        pool, skipped = self._pool(record, header, audio_start, sources, lengths)
        if skipped:
            sources = sources - skipped * (sources >= audio_start)
        indices = np.repeat(sources - starts, lengths)
        indices += _arange(len(indices))
        np.take(pool, indices, out=out, mode="clip")

    def _pieces(
        self, record: bytes, header: Header, begins: bool, ends: bool, audio_start: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pool offset and the length of every piece, int64 `[pieces]` each."""
        part = header.flags >> PART_SHIFT & PART_MASK
        audio_tokens = header.frames * self.codebooks
        opens, closes = bool(header.flags & OPENS), bool(header.flags & CLOSES)
        rows: list[tuple[int, int]]
        if self.view.composition == "text":
            rows = [(_MARKERS, header.text_tokens)]
        elif part == TEXT:
            text = header.text_tokens
            rows = [(_TEXT_START, opens), (_MARKERS, text), (_TEXT_END, closes)]
            rows = rows if self.view.has_text else []
        elif part == AUDIO:
            rows = [(_AUDIO_START, opens), (audio_start, audio_tokens), (_AUDIO_END, closes)]
        else:
            return self._whole_pieces(record, header, begins, ends, audio_start)
        rows = [(_BOS, begins), *rows, (_EOS, ends)]
        pieces = np.array(rows, np.int64)
        return pieces[:, 0], pieces[:, 1]

    def _whole_pieces(
        self, record: bytes, header: Header, begins: bool, ends: bool, audio_start: int
    ) -> tuple[np.ndarray, np.ndarray]:
        counts = read_counts(record, header).astype(np.int64)
        text, audio = counts[:, 1], counts[:, 2] * self.codebooks
        text_offsets = text.cumsum() - text + _MARKERS
        audio_offsets = audio.cumsum() - audio + audio_start
        columns: list[tuple[Any, Any]]  # arrays [utterances], or a number for all utterances
        if not self.view.has_text:
            columns = [(_AUDIO_START, 1), (audio_offsets, audio), (_AUDIO_END, 1)]
        elif self.view.order == "text_first":
            # Length 2: the end marker and audio_start.
            columns = [(_TEXT_START, 1), (text_offsets, text), (_TEXT_END, 2)]
            columns += [(audio_offsets, audio), (_AUDIO_END, 1)]
        else:
            # Length 2: the end marker and text_start.
            columns = [(_AUDIO_START, 1), (audio_offsets, audio), (_AUDIO_END, 2)]
            columns += [(text_offsets, text), (_TEXT_END, 1)]
        width = len(columns)
        pieces = np.empty((2, header.utterances * width + 2), np.int64)
        pieces[:, 0], pieces[:, -1] = (_BOS, begins), (_EOS, ends)
        for number, (offset, length) in enumerate(columns):
            pieces[0, 1 + number : -1 : width] = offset
            pieces[1, 1 + number : -1 : width] = length
        return pieces[0], pieces[1]

    def _pool(
        self,
        record: bytes,
        header: Header,
        audio_start: int,
        sources: np.ndarray,
        lengths: np.ndarray,
    ) -> tuple[np.ndarray, int]:
        """Returns the pool with the needed frames, and the number of audio tokens before them."""
        first = last = 0
        audio = np.flatnonzero(sources >= audio_start)
        if len(audio) and self.codebooks:
            end = sources[audio[-1]] + lengths[audio[-1]] - audio_start
            first = int(sources[audio[0]] - audio_start) // self.codebooks
            last = -(-int(end) // self.codebooks)
        pool = np.empty(audio_start + (last - first) * self.codebooks, np.int32)
        pool[:_MARKERS] = self._markers
        if audio_start > _MARKERS:
            start, count = header.text_ids_start, header.text_tokens
            pool[_MARKERS:audio_start] = self._text_bits.unpack(record, start, 0, count)[:, 0]
        if last > first and self._code_bits is not None:
            start, shown = header.codes_start, self.codebooks
            codes = self._code_bits.unpack(record, start, first, last, shown).reshape(-1)
            offsets = self._offsets  # local: another thread may replace the attribute
            if len(codes) > len(offsets):
                offsets = self._offsets = self._make_offsets(2 * (last - first))
            np.add(codes.view(np.int32), offsets[: len(codes)], out=pool[audio_start:])
        return pool, first * self.codebooks

    def _make_offsets(self, frames: int) -> np.ndarray:
        return np.tile(self.layout.codebook_offsets[: self.codebooks].astype(np.int32), frames)


_ARANGE = np.arange(1 << 14)


def _arange(count: int) -> np.ndarray:
    return _ARANGE[:count] if count <= len(_ARANGE) else np.arange(count)
