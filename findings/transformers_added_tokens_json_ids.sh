#!/usr/bin/env bash
# transformers 5.24.0: added_tokens.json maps a token to its id. If tokenizer.json lacks the token,
# AutoTokenizer adds it with the next free id and ignores the id in the file, without a warning. The
# embedding row of the id in the file is then never used.
#
# Expected: the id in the file (300), or an error.
#
# Observed:
#   {"<new>": 258} -> 258
#   {"<new>": 300} -> 258
#
# `soda convert from-hf` refuses a folder whose other files have tokens that tokenizer.json lacks.
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

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
tokenizer.save("tokenizer.json")
for name, content in (
    ("config.json", {"model_type": "qwen3"}),
    ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
):
    with open(name, "w") as file:
        json.dump(content, file)
changed = False
for number in (258, 300):
    with open("added_tokens.json", "w") as file:
        json.dump({"<new>": number}, file)
    found = AutoTokenizer.from_pretrained(".").convert_tokens_to_ids("<new>")
    print(f'{{"<new>": {number}}} -> {found}')
    changed |= found != 258
sys.exit(changed)
PYTHON
