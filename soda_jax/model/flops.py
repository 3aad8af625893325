"""FLOPs of a step, for the model FLOP utilisation."""

from soda_jax.model.config import DecoderConfig


def training_flops_per_token(config: DecoderConfig, sequence: int) -> float:
    """FLOPs that a training step needs for one token; recomputation is not counted.

    6 · matmul parameters (head included, embedding gather not), plus attention over the causal half
    of the window: forward 4 · h · hd · S / 2 a layer, three times that with the backward pass.
    """
    attention = config.num_layers * 4 * config.num_heads * config.head_dim * sequence / 2
    return 6.0 * config.matmul_parameters + 3.0 * attention
