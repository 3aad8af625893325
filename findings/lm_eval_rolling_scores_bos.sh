#!/usr/bin/env bash
# lm-evaluation-harness (lm-eval 0.4.13, model type `hf`; transformers 5.24.0, torch 2.13.0):
# `loglikelihood_rolling` scores the BOS token if the tokenizer adds one, as those of Llama 3 and Gemma do by default.
# The text is encoded with BOS, and the prefix token, BOS again, is put before it. So the model reads BOS BOS TEXT,
# and the result is log p(BOS | BOS) + log p(TEXT | BOS BOS).
#
# Expected: log p(TEXT | BOS), as documented (the string, given BOS or EOS), and as `loglikelihood` returns for the same
# text after an empty context: it encodes the text without BOS there.
#
# Observed with a random Llama model, default options and add_bos_token=True (the sums are computed directly):
#   log p(TEXT | BOS)                           -30.846   loglikelihood with an empty context
#   log p(BOS | BOS) + log p(TEXT | BOS BOS)    -39.411   loglikelihood_rolling (-7.833 - 31.577)
# so bits_per_byte of a local task is 7.107 instead of 5.563, which it is with add_bos_token=False.
#
# BOS after BOS does not occur in usual training data, so its term can be large. The metrics of rolling tasks such as
# wikitext contain it once per document. add_bos_token=False avoids it, but also removes BOS from the prompts of other
# tasks.
#
# docs/evaluate.md names the difference; `soda_jax/evaluate/lm_eval_model.py` reads BOS once.
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
# torch first, so that a configured package index can provide a build without CUDA
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 'lm-eval[hf]==0.4.13' transformers==5.24.0 tokenizers==0.23.3 accelerate==1.15.0 \
  datasets==5.2.0 peft==0.21.2 numpy==2.4.6
cat >"$folder/run.py" <<'PYTHON'
import math
import sys

import datasets
import torch
import transformers
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors

folder, text = sys.argv[1], "abba cab"
vocabulary = {piece: i for i, piece in enumerate(["<s>", "</s>", "a", "b", "c", " "])}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
).save_pretrained(folder)
torch.manual_seed(2)
model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=0.5, bos_token_id=0, eos_token_id=1,
    )
).eval()
model.save_pretrained(folder)


def log_p(context, ids):
    """Returns log p(ids | context)."""
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *ids]])).logits[0]
    predicted = logits.log_softmax(-1)[len(context) - 1 : -1]
    return sum(row[i].item() for row, i in zip(predicted, ids, strict=True))


def request(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=arguments, idx=0)]


ids = [vocabulary[c] for c in text]
once, twice, bos = log_p([0], ids), log_p([0, 0], ids), log_p([0], [0])
print(f"direct: log p(TEXT | BOS) {once:.3f}, log p(BOS | BOS) + log p(TEXT | BOS BOS) {bos:.3f} + {twice:.3f}")
changed = abs(once - bos - twice) < 1
task = {
    "task": "local", "output_type": "loglikelihood_rolling", "test_split": "test", "doc_to_text": "",
    "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list([{"page": text}])},
    "doc_to_target": "{{page}}", "metric_list": [{"metric": "bits_per_byte"}],
}
for options in ({}, {"add_bos_token": True}, {"add_bos_token": False}):
    lm = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1, **options)
    ((empty, _),) = lm.loglikelihood(request("loglikelihood", "", text))
    (rolling,) = lm.loglikelihood_rolling(request("loglikelihood_rolling", text))
    bits = simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0)["results"]["local"]["bits_per_byte,none"]
    print(f"{options or 'default'}: loglikelihood {empty:.3f}, rolling {rolling:.3f}, bits per byte {bits:.3f}")
    expected = once if options == {"add_bos_token": False} else bos + twice
    changed |= abs(empty - once) > 1e-3 or abs(rolling - expected) > 1e-3
    changed |= abs(bits + expected / len(text) / math.log(2)) > 1e-3
sys.exit(int(changed))
PYTHON
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false \
  "$folder/venv/bin/python" "$folder/run.py" "$folder/model" 2>"$folder/log" || {
  tail -5 "$folder/log"
  exit 1
}
