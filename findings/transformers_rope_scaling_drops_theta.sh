#!/usr/bin/env bash
# transformers 5.24.0 (with torch 2.13.0): if config.json has both rope_parameters, which release 5
# writes, and rope_scaling, which model cards advise to add for long contexts, rope_scaling replaces
# all of rope_parameters. The base of the frequencies that is stored in rope_parameters is lost, and
# the model computes with 10,000, without a warning that names it.
#
# Expected: the base of the checkpoint (1,000,000), or an error about two entries.
#
# Observed (inverse frequency of the slowest pair at head_dim 8):
#   only rope_parameters         theta 1000000.0  3.16e-05
#   with rope_scaling, llama3    theta 10000.0    2.50e-04
#   with rope_scaling, yarn      theta 10000.0    2.50e-04
#
# `soda convert from-hf` refuses such a file unless both entries give the same frequencies.
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

from transformers import AutoConfig
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

shape = {
    "model_type": "qwen3", "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 8, "num_hidden_layers": 1, "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
length = {"factor": 4.0, "original_max_position_embeddings": 32}
cases = {
    "only rope_parameters": (None, 1e6, "3.16e-05"),
    "with rope_scaling, llama3": (
        {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **length},
        1e4, "2.50e-04",
    ),
    "with rope_scaling, yarn": ({"rope_type": "yarn", **length}, 1e4, "2.50e-04"),
}
changed = False
for name, (scaling, theta, slowest) in cases.items():
    with open("config.json", "w") as file:
        json.dump({**shape, **({"rope_scaling": scaling} if scaling else {})}, file)
    config = AutoConfig.from_pretrained(".")
    found = config.rope_parameters["rope_theta"]
    frequency = f"{Qwen3RotaryEmbedding(config).inv_freq[-1]:.2e}"
    print(f"{name:28} theta {found}  {frequency}")
    changed |= (found, frequency) != (theta, slowest)
sys.exit(changed)
PYTHON
