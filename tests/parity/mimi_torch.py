"""Random Mimi models of transformers in which every parameter affects the result.

The initialization of transformers has zero codebooks, residual branches scaled to a hundredth and
identity norms: with it, many errors of an implementation would not change the result.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import MimiConfig, MimiModel

SMALL = {
    "num_filters": 8, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 4, "codebook_size": 64, "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16, "num_quantizers": 8, "upsample_groups": 64,
    "sliding_window": 30,
}  # fmt: skip


def make_model(settings: dict, seed: int, clips: Sequence[np.ndarray]) -> MimiModel:
    """Returns a model with random weights, and codebooks sampled from the latents of `clips`.

    Args:
      settings: settings of `MimiConfig`, {} for the published shape.
      seed: seed of all weights.
      clips: float32 `[whole frames · 1920]` each; together at least as many frames as a codebook has
        entries.
    """
    torch.manual_seed(seed)
    model = MimiModel(MimiConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".scale"):
                parameter.uniform_(0.2, 0.8)
            elif "layernorm.weight" in name:
                parameter.uniform_(0.5, 1.5)
            elif "layernorm.bias" in name:
                parameter.uniform_(-0.5, 0.5)
        latents = torch.cat(
            [model.encoder(torch.from_numpy(clip)[None, None]).latents[0].T for clip in clips]
        )
        quantizer = model.quantizer
        for chain in (
            quantizer.semantic_residual_vector_quantizer,
            quantizer.acoustic_residual_vector_quantizer,
        ):
            left = chain.input_proj(latents.T[None])[0].T
            for layer in chain.layers:
                book = layer.codebook
                # Noise is added because silent frames are equal, and rounding would decide between
                # nearly equal entries.
                chosen = left[torch.randperm(len(left))[: book.codebook_size]]
                book.embed_sum.copy_(chosen + 0.5 * left.std(0) * torch.randn_like(chosen))
                book._embed = None
                left = left - book.decode(book.quantize(left))
        # As loud as the input, so that an error of the decoder is not small in absolute terms.
        codes = model.encode(torch.from_numpy(clips[0])[None, None]).audio_codes
        sound = model.decode(codes).audio_values
        last = model.decoder.decoder_seanet.layers[-1].conv
        last.weight.mul_(0.2 / sound.std())
        last.bias.mul_(0.2 / sound.std())
    return model
