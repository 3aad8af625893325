#!/usr/bin/env bash
# transformers 5.24.0 (with torch 2.13.0): RopeParameters documents partial_rotary_factor as the
# fraction of the head that is rotated. A Qwen3 model ignores it with rope_type "default", without a warning, and with
# "llama3" makes half as many frequencies and then fails in its first forward pass.
#
# Expected: the same meaning for both rope types, or an error when the config is read.
#
# Observed (difference of the logits with factor 0.5 from those with 1.0):
#   default  0.0
#   llama3   RuntimeError: The size of tensor a (8) must match the size of tensor b (4) ...
#
# `soda convert from-hf` refuses a factor other than 1.0.
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def logits(rope: dict, factor: float) -> torch.Tensor:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=16, hidden_size=16, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": factor, **rope},
    )
    with torch.no_grad():
        return Qwen3ForCausalLM(config).eval()(torch.arange(8)[None]).logits


changed = False
for rope in ({"rope_type": "default"}, LLAMA3):
    try:
        found = str((logits(rope, 0.5) - logits(rope, 1.0)).abs().max().item())
    except RuntimeError as error:
        found = f"RuntimeError: {str(error)[:70]} ..."
    print(f"{rope['rope_type']:8} {found}")
    expected = "0.0" if rope["rope_type"] == "default" else "RuntimeError: The size of tensor a (8)"
    changed |= not found.startswith(expected)
sys.exit(changed)
PYTHON
