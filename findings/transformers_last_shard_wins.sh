#!/usr/bin/env bash
# transformers 5.24.0 (with torch 2.13.0): the weight_map of model.safetensors.index.json names the file
# of every tensor, but from_pretrained does not use it for that. It takes every tensor of every file that
# occurs in the map, and of a tensor that is in two files the copy in the file whose name sorts last.
#
# Expected: the copy in the file that weight_map names, or an error.
#
# Observed:
#   weight_map names a.safetensors (1.0), b.safetensors has another copy (2.0): loaded 2.0
#
# `soda convert from-hf` refuses a tensor that is in two files.
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

config = Qwen3Config(
    vocab_size=8, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, head_dim=8,
)
config.save_pretrained(".")
NORM, HEAD = "model.norm.weight", "lm_head.weight"
tensors = {
    name: torch.full_like(value, 1.0)
    for name, value in Qwen3ForCausalLM(config).state_dict().items()
}
head = tensors.pop(HEAD)
save_file(tensors, "a.safetensors", metadata={"format": "pt"})
copy = torch.full_like(tensors[NORM], 2.0)
save_file({HEAD: head, NORM: copy}, "b.safetensors", metadata={"format": "pt"})
where = dict.fromkeys(tensors, "a.safetensors") | {HEAD: "b.safetensors"}
with open("model.safetensors.index.json", "w") as file:
    json.dump({"metadata": {}, "weight_map": where}, file)
found = AutoModelForCausalLM.from_pretrained(".").state_dict()[NORM][0].item()
print(f"weight_map names {where[NORM]} (1.0), b.safetensors has another copy (2.0): loaded {found}")
sys.exit(found != 2.0)
PYTHON
