#!/usr/bin/env bash
# llama.cpp's server (xllamacpp 2026.10.11549): `n_probs` returns no probabilities for a generated token whose text is
# a part of a character, such as a single byte of a byte-level vocabulary.
#
# Expected: with "n_probs": 1, `completion_probabilities` has one entry for each entry of `tokens`.
#
# Observed with a random Qwen3 model whose vocabulary is the 256 bytes: for a token "a" there is an entry; if
# logit_bias selects the byte 0xD2, `tokens` has the three ids, and `completion_probabilities` is missing.
#
# Scores computed from this field would silently skip such tokens. tests/parity/test_llamacpp.py compares `tokens`, and
# docs/serving.md names the behavior.
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6
cat >"$folder/run.py" <<'PYTHON'
import json
import sys
import urllib.request

import gguf
import numpy as np
import xllamacpp

path, width, heads, head, ff, rng = sys.argv[1], 64, 2, 32, 64, np.random.default_rng(0)
printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
others = [byte for byte in range(256) if byte not in printable]
pieces = [chr(b if b in printable else 256 + others.index(b)) for b in range(256)] + ["<s>", "</s>"]
writer = gguf.GGUFWriter(path, "qwen3")
writer.add_context_length(256)
writer.add_embedding_length(width)
writer.add_block_count(1)
writer.add_feed_forward_length(ff)
writer.add_head_count(heads)
writer.add_head_count_kv(heads)
writer.add_key_length(head)
writer.add_value_length(head)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_rope_freq_base(10_000.0)
writer.add_vocab_size(len(pieces))
writer.add_file_type(0)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list(pieces)
writer.add_token_types([1] * 256 + [3, 3])
writer.add_token_merges(["t h"])
writer.add_bos_token_id(256)
writer.add_eos_token_id(257)
shapes = {
    "token_embd": (len(pieces), width), "output": (len(pieces), width),
    "blk.0.attn_q": (heads * head, width), "blk.0.attn_k": (heads * head, width),
    "blk.0.attn_v": (heads * head, width), "blk.0.attn_output": (width, heads * head),
    "blk.0.ffn_gate": (ff, width), "blk.0.ffn_up": (ff, width), "blk.0.ffn_down": (width, ff),
}
for name, shape in shapes.items():
    writer.add_tensor(f"{name}.weight", rng.normal(0, 0.1, shape).astype(np.float32))
for name, size in {"output_norm": width, "blk.0.attn_norm": width, "blk.0.ffn_norm": width,
                   "blk.0.attn_q_norm": head, "blk.0.attn_k_norm": head}.items():
    writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, 256, 1, False
server = xllamacpp.Server(params)


def complete(token):
    body = {"prompt": [256, 104], "n_predict": 3, "temperature": 0, "n_probs": 1,
            "return_tokens": True, "cache_prompt": False, "logit_bias": [[token, 50.0]]}
    request = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
    return found["tokens"], len(found.get("completion_probabilities") or [])


whole, part = complete(ord("a")), complete(0xD2)
print(f"a: tokens and probabilities {whole}; the byte 0xD2: {part}")
sys.exit(0 if whole == ([97] * 3, 3) and part == ([0xD2] * 3, 0) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder/model.gguf" 2>"$folder/log" || {
  tail -5 "$folder/log"
  exit 1
}
