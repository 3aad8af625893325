"""GGUF files in llama.cpp (the wheel xllamacpp): its greedy ids are those of our decoder."""

import json
import urllib.request

import numpy as np
import pytest

pytest.importorskip("gguf")
xllamacpp = pytest.importorskip("xllamacpp")

from convert_toys import fields, write_run  # noqa: E402
from tokenizer_toys import every  # noqa: E402

from soda_jax.convert.to_gguf import grammar_path, to_gguf  # noqa: E402
from soda_jax.convert.to_hf import to_huggingface  # noqa: E402
from soda_jax.generate.checkpoint import load_decoder  # noqa: E402
from soda_jax.generate.engine import Engine  # noqa: E402
from soda_jax.generate.sampling import GREEDY  # noqa: E402

ROPE = {"theta": 10_000.0, "factor": 1.0}


def export(tmp_path, tokenizer=None, **changes):
    """Writes a random run and its export; returns the folders."""
    model = fields(rope=ROPE, head_dim=32, hidden_size=64, **changes)
    write_run(tmp_path / "run", model, tokenizer)
    to_huggingface(tmp_path / "run", tmp_path / "hf")
    return tmp_path / "run", tmp_path / "hf"


def serve(path):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    params.cpuparams.n_threads = 1
    # The cache is f16 by default.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def post(server, path, **body):
    request = urllib.request.Request(f"{server.listening_address}{path}", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def complete(server, prompt, count, **options):
    """Returns llama.cpp's answer with at most `count` greedy tokens."""
    return post(
        server, "/completion", prompt=[int(i) for i in prompt], n_predict=count, temperature=0,
        cache_prompt=False, return_tokens=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_greedy_ids_with_and_without_the_grammar(tmp_path, tied):
    run, folder = export(tmp_path, tie_embeddings=tied)
    to_gguf(folder, tmp_path / "model.gguf", "f32")
    decoder, server = load_decoder(run), serve(tmp_path / "model.gguf")
    layout = decoder.layout
    engine = Engine(decoder.model, decoder.params, layout, layout.codebooks, dtype="float32")
    prompt = np.array(
        [layout.bos, layout.text_start, *b"go on", layout.text_end, layout.audio_start]
    )
    (ours,) = engine([prompt], stop=layout.eos, budget=24, sampling=GREEDY, constrained=False)
    found = complete(server, prompt, 24)["tokens"]
    assert found[: len(ours.ids)] == ours.ids.tolist()
    # A byte is the beginning of a character, so llama.cpp's grammar would allow text in a random model.
    banned = [[number, False] for number in range(layout.audio_base)
              if number not in (layout.audio_end, layout.eos)]  # fmt: skip
    rules = grammar_path(tmp_path / "model.gguf").read_text("utf-8")
    (legal,) = engine([prompt], stop=layout.audio_end, budget=30, sampling=GREEDY)
    spoken = complete(server, prompt, 30, grammar=rules, logit_bias=banned)["tokens"]
    assert spoken[: len(legal.ids)] == legal.ids.tolist()
    assert len(set(legal.ids.tolist())) > 3 and legal.ids.tolist() != ours.ids.tolist()


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 0.01), ("q8_0", 0.2)])
def test_narrow_files_have_nearly_the_same_log_probabilities(tmp_path, dtype, tolerance):
    run, folder = export(tmp_path, intermediate_size=64)
    to_gguf(folder, tmp_path / "model.gguf", dtype)
    decoder, server = load_decoder(run), serve(tmp_path / "model.gguf")
    layout = decoder.layout
    prompt = np.array([layout.bos, layout.text_start, *b"one two three"])
    positions = np.arange(len(prompt))[None]
    bound = decoder.model.bind(decoder.params)
    logits = bound.logits(bound(prompt[None], np.ones_like(prompt)[None], positions))[0, -1]
    expected = np.asarray(logits, np.float64) - np.logaddexp.reduce(np.asarray(logits, np.float64))
    # Probabilities of a token that is a part of a character are not returned.
    one = complete(server, prompt, 1, n_probs=layout.size, logit_bias=[[ord("a"), 50.0]])
    (step,) = one["completion_probabilities"]
    found = {row["id"]: row["logprob"] for row in step["top_logprobs"]}
    errors = [abs(found[i] - expected[i]) for i in found]
    assert 0 < max(errors) < tolerance * expected.std()


@pytest.mark.parametrize("kind", ["bytes", "trained", "llama_like"])
def test_a_string_has_our_ids(tmp_path, kind):
    tokenizer = every()[kind]
    _, folder = export(tmp_path, tokenizer)
    to_gguf(folder, tmp_path / "model.gguf", "f32")
    server = serve(tmp_path / "model.gguf")
    for text in ("hello there, hello you 12345", "one two  three"):
        found = post(server, "/tokenize", content=text, add_special=False)["tokens"]
        assert found == tokenizer.encode(text).tolist()
