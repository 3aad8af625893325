"""Shape of a decoder in a scaling study, with its parameters and its FLOPs as the study counts them.

The study's budget is 3 × the FLOPs of the forward pass, with attention over the full S² and the head
over all ids (SODA, IsoFLOP section). The MFU counts other FLOPs, see
`soda_jax.model.config.DecoderConfig.training_flops_per_token`.
"""

import dataclasses


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
