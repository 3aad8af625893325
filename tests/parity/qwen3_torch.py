"""Transformers' Qwen3 with weights large enough that every part of it shows in the logits."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def random_model(vocabulary: int, seed: int = 0, **changes: Any) -> Qwen3ForCausalLM:
    """A model in f32 with norms around 1; `changes` are fields of its config."""
    settings = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "max_position_embeddings": 8192,
        "rope_theta": 10_000.0,
        "rope_scaling": LLAMA3,
    }
    config = Qwen3Config(vocab_size=vocabulary, **{**settings, **changes})
    model = Qwen3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise + (1.0 if "norm" in name else 0.0))
    return model


def load(folder: Path) -> Qwen3ForCausalLM:
    """The model in a folder, in f32."""
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def answers(model: Qwen3ForCausalLM, tokens: np.ndarray, new: int) -> dict[str, np.ndarray]:
    """What is compared, for int ids `[batch, sequence]`.

    Returns:
      logits `[batch, sequence, vocabulary]`, the mean loss of the next token, and the ids `[batch, new]`
      that follow the first four of each row greedily.
    """
    ids = torch.tensor(tokens.astype(np.int64))
    with torch.no_grad():
        out = model(ids, labels=ids)
        # `generate` would stop at its own end token.
        said = ids[:, :4]
        for _ in range(new):
            said = torch.cat([said, model(said).logits[:, -1:].argmax(-1)], 1)
    return {
        "logits": out.logits.numpy(),
        "loss": np.float32(out.loss),
        "greedy": said[:, 4:].numpy().astype(np.int32),
    }
