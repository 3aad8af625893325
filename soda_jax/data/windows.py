"""Makes batches of windows: tokens, segment ids, positions, target classes and loss mask."""

from typing import NamedTuple

import numpy as np

from soda_jax.data.legal import NO_SET
from soda_jax.tokens.vocabulary import VocabularyLayout


class Batch(NamedTuple):
    """Windows as arrays.

    Attributes:
      tokens: token ids, int32 `[rows, sequence]`.
      segment_ids: number of the segment in the window, from 1, int32 `[rows, sequence]`; a segment
        is a document or a part of one.
      positions: position in the segment, from 0, int32 `[rows, sequence]`.
      target_class: class of the *next* token (`VocabularyLayout.class_of_id`), int8
        `[rows, sequence]`; 0 at the last position, which has no target.
      loss_mask: 1 where the next token contributes to the loss, float32 `[rows, sequence]`.
      source: index of the source of each row, int32 `[rows]`.
      legal_set: number in `partition(layout).sets` of the set of ids that the next token may have, uint8
        `[rows, sequence]`, 255 where there is no target; None unless the data set was opened with
        `legal_sets`.
      full_offset: a pseudo-random number of each window, int32 `[rows]`; None like `legal_set`. The
        loss uses it to sample positions.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    target_class: np.ndarray
    loss_mask: np.ndarray
    source: np.ndarray
    legal_set: np.ndarray | None = None
    full_offset: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays by name, without those that are None."""
        return {name: array for name, array in self._asdict().items() if array is not None}


def empty_batch(rows: int, sequence_length: int, legal_sets: bool = False) -> Batch:
    """Returns a batch in which each row is one segment of token id 0 with loss mask 0.

    Args:
      rows, sequence_length: shape of the batch.
      legal_sets: whether it has `legal_set` and `full_offset`.
    """
    shape = (rows, sequence_length)
    return Batch(
        tokens=np.zeros(shape, np.int32),
        segment_ids=np.ones(shape, np.int32),
        positions=np.tile(np.arange(sequence_length, dtype=np.int32), (rows, 1)),
        target_class=np.zeros(shape, np.int8),
        loss_mask=np.zeros(shape, np.float32),
        source=np.zeros(rows, np.int32),
        legal_set=np.full(shape, NO_SET, np.uint8) if legal_sets else None,
        full_offset=np.zeros(rows, np.int32) if legal_sets else None,
    )


def annotate(
    batch: Batch, row: int, layout: VocabularyLayout, damaged: list[tuple[int, int]]
) -> None:
    """Computes segment ids, positions, target classes and loss mask of a row from its tokens.

    Before the call, these arrays must contain the values of `empty_batch`. A segment ends after
    EOS. The BOS after an EOS is a target like any other token. The tokens in the `damaged` ranges
    [first, last) and the first token after each range are not targets.
    """
    tokens, segments = batch.tokens[row], batch.segment_ids[row]
    length = len(tokens)
    starts = np.flatnonzero(tokens[:-1] == layout.eos) + 1
    if len(starts):
        # The segment ids are the cumulative sum of an array with a 1 at each segment start.
        segments[0], segments[1:] = 1, 0
        segments[starts] = 1
        np.cumsum(segments, out=segments)
        lengths = np.diff(starts, append=length)
        batch.positions[row, starts[0] :] -= np.repeat(starts.astype(np.int32), lengths)
    classes = layout.class_of_id
    np.take(classes, tokens[1:], out=batch.target_class[row, :-1], mode="clip")
    batch.loss_mask[row, :-1] = 1
    for first, last in damaged:
        batch.loss_mask[row, max(first - 1, 0) : last] = 0
