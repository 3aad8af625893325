"""Reads a source, which is a split of a data set rendered under views and cut into windows."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from soda_jax.data.format.records import FIRST, LAST, OPENS, TEXT, DamagedRecordError, read_header
from soda_jax.data.format.rendering import Renderer
from soda_jax.data.legal import Prefixes
from soda_jax.data.split import Split
from soda_jax.tokens.documents import View
from soda_jax.tokens.partition import Partition


class Source:
    """The tokens of a split under one or two views, as one sequence.

    Attributes:
      name: name of the source in the config.
      manifest: manifest of the generation that is read.
      split: the records and documents.
      record_starts: index of the first token of each record in rendered order, view by view,
        followed by the length of the sequence, int64 `[views · records + 1]`.
      tokens: length of the sequence.
      codebooks: number of codebooks in the stream; all if there is no audio.
      windows: number of whole windows.
      tail_tokens: number of tokens after the last whole window, which are dropped.
    """

    def __init__(self, split: Split, views: Sequence[View], sequence_length: int):
        """Computes the order of the records and the positions of their tokens.

        Args:
          split: the records and documents.
          views: one view, or text-first and audio-first; the source is the split under the first view
            followed by the split under the second.
          sequence_length: tokens per window.
        """
        self.name, self.manifest, self.split = split.name, split.manifest, split
        self.views = tuple(views)
        self._index = split.index
        layout = self.manifest.layout
        self.codebooks = (
            views[0].shown_codebooks(layout) if views[0].has_audio else layout.codebooks
        )
        self._renderers = [Renderer(self.manifest.layout, view) for view in views]
        self._order, lengths = zip(*map(self._rendered, self._renderers), strict=True)
        self.record_starts = np.concatenate(
            [[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)]
        )
        self.tokens = int(self.record_starts[-1])
        self.windows, self.tail_tokens = divmod(self.tokens, sequence_length)

    def _rendered(self, renderer: Renderer) -> tuple[np.ndarray, np.ndarray]:
        """Returns record numbers in rendered order and their token counts, both int64 `[records]`."""
        index, part = self._index, self._index.part
        order = rendered_order(part, index.flags, renderer.view.order)
        columns = (part, index.flags, index.utterances, index.text_tokens, index.frames)
        lengths = renderer.lengths(*columns)[order]
        # The order changes only within a document, so BOS and EOS keep their positions.
        lengths += ((index.flags & FIRST) > 0).astype(np.int64) + ((index.flags & LAST) > 0)
        return order, lengths * self.split.kept_records

    def read(self, start: int, out: np.ndarray) -> list[tuple[int, int]]:
        """Writes tokens [start, start + len(out)) of the source into `out`, int32.

        Returns:
          The ranges [first, last) of `out` that belong to masked or damaged records, as pairs.
          These ranges are filled with EOS, so that no later token attends to them.

        Raises:
          DamagedRecordError: if a record cannot be read and `on_corrupt_record` is "fatal".
          StoreError: if a remote store cannot be read.
        """
        holes: list[tuple[int, int]] = []
        stop = start + len(out)
        position = int(np.searchsorted(self.record_starts, start, side="right")) - 1
        begin = int(self.record_starts[position])
        while begin < stop:
            end = int(self.record_starts[position + 1])
            if end > begin:
                first, last = max(start, begin), min(stop, end)
                piece = out[first - start : last - start]
                if not self._render(position, first - begin, last - begin, piece):
                    piece[:] = self.manifest.layout.eos
                    holes.append((first - start, last - start))
            position, begin = position + 1, end
        return holes

    @cached_property
    def _prefixes(self) -> list[Prefixes]:
        layout = self.manifest.layout
        return [
            Prefixes(layout, view, self._index, order)
            for view, order in zip(self.views, self._order, strict=True)
        ]

    @cached_property
    def _text_before(self) -> np.ndarray:
        """Number of text tokens before each record, f64 `[views · records + 1]`."""
        counts = [
            self._index.text_tokens[order] * (self.split.kept_records & renderer.view.has_text)
            for order, renderer in zip(self._order, self._renderers, strict=True)
        ]
        return np.concatenate([[0.0], np.cumsum(np.concatenate(counts), dtype=np.float64)])

    def text_tokens(self, start: int, stop: int) -> float:
        """Returns the number of text tokens in [start, stop), estimated from the index.

        Text and audio of a record are assumed to be spread evenly over its tokens.
        """
        return self._text_up_to(stop) - self._text_up_to(start)

    def _text_up_to(self, token: int) -> float:
        # Not `np.interp`, which would copy the whole index for every call.
        last = len(self.record_starts) - 1
        position = min(int(np.searchsorted(self.record_starts, token, side="right")) - 1, last - 1)
        first, end = self.record_starts[position : position + 2].tolist()
        before, after = self._text_before[position : position + 2].tolist()
        return before + (after - before) * (token - first) / max(end - first, 1)

    def state(self, start: int) -> tuple[Partition, int]:
        """Returns the legal sets of the source, and the state of the automaton before token `start`.

        The token must not belong to a masked or damaged record.
        """
        position = int(np.searchsorted(self.record_starts, start, side="right")) - 1
        offset = start - int(self.record_starts[position])
        view, position = divmod(position, len(self._index.flags))
        number = int(self._order[view][position])
        record = self.split.read_record(number) if offset else None
        prefixes = self._prefixes[view]
        return prefixes.partition, prefixes.state(position, offset, record)

    def prefetch(self, start: int, stop: int) -> Sequence[object]:
        """Requests the records of tokens [start, stop); keep the result until `read` returns."""
        first = int(np.searchsorted(self.record_starts, start, side="right")) - 1
        last = int(np.searchsorted(self.record_starts, stop, side="left"))
        positions = np.arange(first, last)
        # The records of excluded documents have no tokens.
        positions = positions[np.diff(self.record_starts[first : last + 1]) > 0]
        records = len(self._index.flags)
        return self.split.prefetch(
            int(self._order[p // records][p % records]) for p in positions.tolist()
        )

    def _render(self, position: int, first: int, last: int, out: np.ndarray) -> bool:
        """Writes tokens [first, last) of a record; returns False if it is masked or damaged."""
        view, position = divmod(position, len(self._index.flags))
        number = int(self._order[view][position])
        if number in self.split.masked:
            return False
        try:
            record = self.split.read_record(number)
            header = read_header(record, self.manifest.layout)
            index = self._index
            found = (header.flags, header.utterances, header.text_tokens, header.frames)
            stated = (index.flags, index.utterances, index.text_tokens, index.frames)
            if found != tuple(int(column[number]) for column in stated):
                raise DamagedRecordError("its counts differ from those in the index")
        except DamagedRecordError as error:
            self.split.report_damage(number, error)
            return False
        flags = int(self._index.flags[position])
        begins, ends = bool(flags & FIRST), bool(flags & LAST)
        self._renderers[view].tokens(record, header, begins, ends, first, last, out)
        return True


def rendered_order(part: np.ndarray, flags: np.ndarray, order: str) -> np.ndarray:
    """Returns the record number at each position of the rendered split.

    The order "audio_first" moves only the records of utterances stored in pieces: their audio
    records are moved before their text records.

    Args:
      part: kind of each record, `[records]`.
      flags: flags of each record, `[records]`.
      order: "text_first" (as stored) or "audio_first".

    Returns:
      int64 `[records]`, a permutation.
    """
    records = np.arange(len(part))
    pieces = np.flatnonzero(part != 0)
    if order == "text_first" or not len(pieces):
        return records
    # An utterance starts at its first text record. In a text-only document there is no audio to
    # move.
    is_text = part[pieces] == TEXT
    opens = is_text & ((flags[pieces] & (OPENS | FIRST)) > 0)
    records[pieces] = pieces[np.lexsort((is_text, np.cumsum(opens)))]
    return records
