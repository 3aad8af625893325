"""Transformers' Qwen3 and its results, saved by tests/parity/regenerate_qwen3.py."""

from pathlib import Path

import numpy as np
import pytest
from convert_toys import CODEBOOKS
from qwen3_answers import agree, answers, with_tokenizer
from safetensors.numpy import load_file

from soda_jax.convert.from_hf import from_huggingface
from soda_jax.convert.to_hf import to_huggingface
from soda_jax.generate.checkpoint import load_decoder

FIXTURE = Path(__file__).parent / "qwen3_fixture"


@pytest.mark.parametrize("name", ["scaled", "tied"])
def test_a_model_of_transformers_gives_the_same_results(name, tmp_path):
    folder = with_tokenizer(FIXTURE / name, tmp_path / "theirs")
    with np.load(FIXTURE / name / "answers.npz") as saved:
        theirs = dict(saved)
    tokens = theirs.pop("tokens")
    from_huggingface(folder, tmp_path / "work", codebook_sizes=CODEBOOKS)
    agree(answers(load_decoder(tmp_path / "work"), tokens, theirs["greedy"].shape[1]), theirs)


@pytest.mark.parametrize("name", ["scaled", "tied"])
def test_a_model_of_transformers_is_exported_unchanged(name, tmp_path):
    folder = with_tokenizer(FIXTURE / name, tmp_path / "theirs")
    from_huggingface(folder, tmp_path / "work", codebook_sizes=CODEBOOKS)
    to_huggingface(tmp_path / "work", tmp_path / "again")
    first, second = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    for tensor in first:
        np.testing.assert_array_equal(first[tensor], second[tensor], err_msg=tensor)
