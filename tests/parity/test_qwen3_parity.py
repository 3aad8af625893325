"""Compares models with transformers.Qwen3ForCausalLM, converted in both directions."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import convert_toys as toys  # noqa: E402
from qwen3_answers import agree, answers, with_tokenizer  # noqa: E402
from qwen3_torch import LLAMA3, load, random_model  # noqa: E402
from qwen3_torch import answers as torch_answers  # noqa: E402
from regenerate_qwen3 import FOLDER, VOCABULARY, write  # noqa: E402

from soda_jax.convert.from_hf import from_huggingface  # noqa: E402
from soda_jax.convert.to_hf import to_huggingface  # noqa: E402
from soda_jax.generate.checkpoint import load_decoder  # noqa: E402

NO_SCALING = {
    "theta": 1e6,
    "factor": 1.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position": 8192,
}
# heads, kv heads, head_dim, tied, rope scaling, sequence
CASES = [
    (4, 4, 4, False, True, 40),  # heads · head_dim is the width
    (4, 2, 8, True, True, 40),
    (6, 2, 4, False, False, 40),
    (4, 1, 16, True, False, 40),
    (1, 1, 2, False, True, 40),
    (2, 1, 8, False, True, 4096),
]


def tokens(length):
    rows = 2 if length < 1000 else 1
    return np.random.default_rng(2).integers(0, VOCABULARY, (rows, length)).astype(np.int32)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "tied", "scaled", "length"), CASES)
def test_ours_answers_alike_there(heads, kv_heads, head_dim, tied, scaled, length, tmp_path):
    rope = toys.ROPE if scaled else NO_SCALING
    shape = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim}
    model = toys.fields(**shape, tie_embeddings=tied, rope=rope, rms_norm_eps=1e-3)
    toys.write_run(tmp_path / "run", model)
    to_huggingface(tmp_path / "run", tmp_path / "out", shard_bytes=10_000)
    ours = answers(load_decoder(tmp_path / "run"), tokens(length), 8)
    agree(ours, torch_answers(load(tmp_path / "out"), tokens(length), 8))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "tied", "scaled", "length"), CASES)
def test_theirs_answers_alike_here(heads, kv_heads, head_dim, tied, scaled, length, tmp_path):
    model = random_model(
        VOCABULARY,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        rope_theta=10_000.0 if scaled else 1e6,
        rope_scaling=LLAMA3 if scaled else None,
        rms_norm_eps=1e-3,
    )
    model.save_pretrained(tmp_path / "saved")
    folder = with_tokenizer(tmp_path / "saved", tmp_path / "theirs")
    from_huggingface(folder, tmp_path / "work", codebook_sizes=toys.CODEBOOKS)
    ours = answers(load_decoder(tmp_path / "work"), tokens(length), 8)
    agree(ours, torch_answers(model, tokens(length), 8))


def test_a_model_saved_in_bf16_comes_over_exactly(tmp_path):
    model = random_model(VOCABULARY).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    folder = with_tokenizer(tmp_path / "saved", tmp_path / "theirs")
    from_huggingface(folder, tmp_path / "work", codebook_sizes=toys.CODEBOOKS)
    ours = answers(load_decoder(tmp_path / "work"), tokens(40), 8)
    # Loaded anew: `to` also rounded the frequencies of its rotary positions.
    agree(ours, torch_answers(load(tmp_path / "saved"), tokens(40), 8))


def test_the_fixture_is_what_transformers_says_today(tmp_path):
    write(tmp_path)
    for name in ("scaled", "tied"):
        with (
            np.load(tmp_path / name / "answers.npz") as now,
            np.load(FOLDER / name / "answers.npz") as then,
        ):
            np.testing.assert_allclose(now["logits"], then["logits"], atol=1e-5)
            np.testing.assert_array_equal(now["greedy"], then["greedy"])
