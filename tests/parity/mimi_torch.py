"""Random Mimi models of transformers, made so that nothing in them is idle.

Its own initialisation has zero codebooks, residual branches scaled to a hundredth and norms that do
nothing: with it, half of an implementation could be wrong and agree.
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
    """A model with random weights whose codebooks hold what its encoder makes of `clips`.

    Args:
      settings: of `MimiConfig`, {} for the published shape.
      seed: of all weights.
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
                # Moved away from the frames they come from: silence gives the same frame again and
                # again, and entries that are all but the same are told apart by rounding alone.
                chosen = left[torch.randperm(len(left))[: book.codebook_size]]
                book.embed_sum.copy_(chosen + 0.5 * left.std(0) * torch.randn_like(chosen))
                book._embed = None
                left = left - book.decode(book.quantize(left))
        # About as loud as its input, so that an error of the decoder is not small by itself.
        codes = model.encode(torch.from_numpy(clips[0])[None, None]).audio_codes
        sound = model.decode(codes).audio_values
        last = model.decoder.decoder_seanet.layers[-1].conv
        last.weight.mul_(0.2 / sound.std())
        last.bias.mul_(0.2 / sound.std())
    return model
