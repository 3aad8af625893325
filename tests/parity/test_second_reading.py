"""Compares both readings of a Hugging Face folder with Transformers, for configs that are easily misread."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import save_file  # noqa: E402
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding  # noqa: E402

from soda_jax.convert import architecture, second_reading  # noqa: E402
from soda_jax.errors import UserError  # noqa: E402
from soda_jax.model import VocabularyBlocks, rope  # noqa: E402

SHAPE = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 64, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
ENTRIES = (
    None,
    {},
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_theta": 100},
    LLAMA3,
    {**LLAMA3, "rope_theta": 5e5},
    {**LLAMA3, "type": "yarn"},
    {"type": "llama3", **{key: value for key, value in LLAMA3.items() if key != "rope_type"}},
    {key: value for key, value in LLAMA3.items() if not key.startswith("original")},
)
OUTSIDE = (
    {},
    {"rope_theta": 1e6},
    {"rope_theta": 100},
    {"original_max_position_embeddings": 16},
    {"head_dim": None},
)


def configs():
    for scaling, parameters, outside in itertools.product(ENTRIES, ENTRIES, OUTSIDE):
        content = {**SHAPE, **outside}
        if "head_dim" in outside:
            del content["head_dim"]
        given = {"rope_scaling": scaling, "rope_parameters": parameters}
        yield content | {name: value for name, value in given.items() if value is not None}


def theirs(folder: Path, content: dict) -> np.ndarray:
    """Inverse frequencies that Transformers computes from a config.json."""
    (folder / "config.json").write_text(json.dumps(content))
    config = transformers.AutoConfig.from_pretrained(folder)
    rotary = Qwen3RotaryEmbedding(config)
    assert rotary.attention_scaling == 1.0
    return rotary.inv_freq.numpy()


def test_the_second_reading_is_transformers_and_the_first_one_agrees_or_refuses(tmp_path):
    refused, taken = 0, 0
    for content in configs():
        wanted = theirs(tmp_path, json.loads(json.dumps(content)))
        found = second_reading.rotary_frequencies(content)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, err_msg=str(content))
        try:
            config = architecture.decoder_of(
                content, VocabularyBlocks(64, ()), tmp_path / "config.json"
            )
        except UserError:
            refused += 1
            continue
        taken += 1
        mine = rope.frequencies(config.head_dim, config.rope)
        np.testing.assert_allclose(mine, wanted, rtol=1e-5, err_msg=str(content))
    assert refused > 100 and taken > 100


def test_the_second_reading_takes_the_file_of_every_tensor_that_transformers_takes(tmp_path):
    config = transformers.Qwen3Config(**SHAPE)
    names = transformers.Qwen3ForCausalLM(config).state_dict()
    config.save_pretrained(tmp_path)

    def tensors(value: float) -> dict[str, np.ndarray]:
        return {name: np.full(old.shape, value, np.float32) for name, old in names.items()}

    def loaded() -> float:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        (value,) = {float(each.max()) for each in model.state_dict().values()}
        return value

    shard, index = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
    save_file(tensors(1.0), tmp_path / shard, metadata={"format": "pt"})
    (tmp_path / index).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)})
    )
    assert loaded() == 1.0
    assert second_reading.weight_files(tmp_path) == dict.fromkeys(names, tmp_path / shard)
    single = tmp_path / "model.safetensors"
    save_file(tensors(2.0), single, metadata={"format": "pt"})
    assert loaded() == 2.0
    assert second_reading.weight_files(tmp_path) == dict.fromkeys(names, single)


@pytest.mark.parametrize("name", sorted(architecture.REFUSED_DEFAULTS))
def test_the_values_in_our_messages_are_those_that_transformers_uses(tmp_path, name):
    content = {key: value for key, value in SHAPE.items() if key != name}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    found = config.rope_parameters["rope_theta"] if name == "rope_theta" else getattr(config, name)
    assert found == architecture.REFUSED_DEFAULTS[name]
