"""Hypothesis strategies: layouts, views and documents that fit them."""

import numpy as np
from hypothesis import strategies as st

from soda_jax.tokens.documents import COMPOSITIONS, ORDERS, Utterance, View
from soda_jax.tokens.vocabulary import VocabularyLayout


@st.composite
def layouts(draw) -> VocabularyLayout:
    """Small layouts: specials anywhere among the text ids, 1–4 codebooks of different sizes."""
    text_size = draw(st.integers(3, 30))
    count = draw(st.integers(2, text_size - 1))
    specials = tuple(sorted(draw(st.permutations(range(text_size)))[:count]))
    bos, eos = draw(st.permutations(specials))[:2]
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    return VocabularyLayout(text_size, specials, bos, eos, tuple(sizes))


@st.composite
def views(draw, layout: VocabularyLayout) -> View:
    """Any order and composition, all codebooks or fewer."""
    order, composition = draw(st.sampled_from(ORDERS)), draw(st.sampled_from(COMPOSITIONS))
    return View(order, composition, draw(st.integers(0, layout.codebooks)))


@st.composite
def documents(draw) -> tuple[VocabularyLayout, View, list[Utterance]]:
    """A layout, a view and one to four utterances with text and audio."""
    layout = draw(layouts())
    ordinary = np.flatnonzero(layout.ordinary_text).tolist()
    utterances = []
    for _ in range(draw(st.integers(1, 4))):
        text = draw(st.lists(st.sampled_from(ordinary), min_size=1, max_size=6))
        frames = draw(st.integers(1, 5))
        codes = [
            [draw(st.integers(0, n - 1)) for n in layout.codebook_sizes] for _ in range(frames)
        ]
        utterances.append(Utterance("", np.array(text, np.int32), np.array(codes, np.uint16)))
    return layout, draw(views(layout)), utterances
