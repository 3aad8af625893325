"""Windows of rendered documents of random text and codes, for the workers of `head.py`."""

from typing import Any

import numpy as np


def document_windows(
    layout: Any, rows: int, sequence: int, text_share: float, seed: int = 0
) -> Any:
    """Returns a `Batch` of packed utterances, text first, as the loader makes them.

    Args:
      layout: vocabulary layout.
      rows, sequence: shape of the batch.
      text_share: share of text tokens; an utterance has 2 to 6 seconds of audio.
      seed: seed of the content.
    """
    from soda_jax.data.windows import annotate, empty_batch
    from soda_jax.tokens.documents import Utterance, View, render
    from soda_jax.tokens.partition import partition

    rng = np.random.default_rng(seed)
    rules = partition(layout)
    ordinary = np.flatnonzero(layout.ordinary_text)
    batch = empty_batch(rows, sequence, legal_sets=True)
    for row in range(rows):
        stream: list[np.ndarray] = []
        first = int(rng.integers(1000))
        while sum(map(len, stream)) < first + sequence:
            frames = int(rng.integers(25, 76))
            audio = frames * layout.codebooks + 4
            text = rng.choice(ordinary, max(1, round(audio * text_share / (1 - text_share))))
            sizes = np.array(layout.codebook_sizes)
            codes = (rng.random((frames, layout.codebooks)) * sizes).astype(np.uint16)
            stream.append(render([Utterance("", text, codes)], View(), layout))
        tokens = np.concatenate(stream)
        states = rules.states(tokens, rules.rules.start)
        part = slice(first, first + sequence)
        batch.tokens[row] = tokens[part]
        annotate(batch, row, layout, [])
        sets = rules.joint_numbers[rules.set_of_state[states[part]]]
        batch.legal_set[row, :-1] = sets[:-1]
    return batch
