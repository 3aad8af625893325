"""Shape of a decoder in a scaling study, with its parameters and its FLOPs as the study counts them.

The study's budget is 3 × the FLOPs of the forward pass, with attention over the full S² and the head
over all ids (SODA, IsoFLOP section). The MFU counts other FLOPs, see
`soda_jax.model.config.DecoderConfig.training_flops_per_token`. `legal_head_rows` is for the FLOPs of
`model.head` = "legal", which multiplies only the rows of the ids that can come next.
"""

import dataclasses

import numpy as np

from soda_jax.errors import UserError
from soda_jax.tokens.partition import partition
from soda_jax.tokens.vocabulary import VocabularyLayout

_UTTERANCES = 50  # of the document that is counted
_FRAMES = 100  # of an utterance, 8 s at 12.5 frames/s
_TEXT = 40  # text tokens of an utterance


def legal_head_rows(
    layout: VocabularyLayout, text_share: float = 0.1, full_every: int = 0, codebooks: int = 0
) -> float:
    """Returns the mean number of logits per position with `model.head` = "legal".

    Counts the legal sets of the targets of a text-first document whose utterances have 100 frames, with
    `text_share` as the weight of the targets in text: in SODA's layout 2,048 ids inside a frame, one more
    at its boundary, 128,001 in text, at most 3 at markers. This is what the training step counts as
    `head_rows`.

    Args:
      layout: the vocabulary.
      text_share: share of the positions that are normalized over text, as in `soda plan`.
      full_every: `model.full_every`; every position with this distance has all ids as well; 0 = none.
      codebooks: codebooks of the stream, 0 = all.

    Raises:
      UserError: if `text_share` is not from 0 to 1.
    """
    if not 0 <= text_share <= 1:
        raise UserError(f"--text_share={text_share:g} must be from 0 to 1")
    rules = partition(layout, codebooks)
    ordinary = int(np.argmax(layout.ordinary_text))
    text = [layout.text_start, *[ordinary] * _TEXT, layout.text_end]
    frame = layout.codebook_offsets[: rules.codebooks].tolist()
    audio = [layout.audio_start, *frame * _FRAMES, layout.audio_end]
    tokens = np.array([layout.bos, *(text + audio) * _UTTERANCES, layout.eos])
    states = np.concatenate([[rules.rules.start], rules.states(tokens, rules.rules.start)[:-1]])
    sizes = np.array([sum(last - first for first, last in ids) for ids in rules.sets])
    with_text = np.array([any(a <= ordinary < b for a, b in ids) for ids in rules.sets])
    rows, is_text = sizes[rules.set_of_state[states]], with_text[rules.set_of_state[states]]
    mean = text_share * rows[is_text].mean() + (1 - text_share) * rows[~is_text].mean()
    return float(mean) + (layout.size / full_every if full_every else 0.0)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 decoder with untied embeddings and as many key and value heads as query heads.

    Attributes:
      width: width of the residual stream.
      layers: number of layers.
      heads: number of query heads, and of key and value heads.
      head_dim: width of a head.
      d_ff: width of the SwiGLU MLP.
    """

    width: int
    layers: int
    heads: int
    head_dim: int
    d_ff: int

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters of all layers and of the final norm."""
        matrices = 4 * self.width * self.heads * self.head_dim + 3 * self.width * self.d_ff
        norms = 2 * self.width + 2 * self.head_dim
        return self.layers * (matrices + norms) + self.width

    def parameters(self, vocabulary: int, matrices: int = 2) -> int:
        """Returns all parameters; `matrices` = 1 counts the head but not the embedding."""
        return self.non_embedding_parameters + matrices * vocabulary * self.width

    def forward_flops_per_token(
        self, vocabulary: int, sequence_length: int, head_rows: float | None = None
    ) -> float:
        """Returns the FLOPs of the forward pass per token (SODA, IsoFLOP section).

        L · (6·d·ff + 2d · (h·hd + 2·kv·hd) + 2·h·hd·d + (4S²·h·hd + 3S²·h) / S) + 2·d·V

        Args:
          vocabulary: number of ids, V.
          sequence_length: tokens of a window, S.
          head_rows: mean number of logits per token; by default V.
        """
        inner = self.heads * self.head_dim
        mlp = 6 * self.width * self.d_ff
        projections = 8 * self.width * inner
        attention = sequence_length * (4 * inner + 3 * self.heads)
        rows = vocabulary if head_rows is None else head_rows
        return self.layers * (mlp + projections + attention) + 2.0 * self.width * rows
