"""Each error of a folder is one line that names file and tensor, and no files remain."""

import json
import pickle
import shutil
import types

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from soda_jax.checked_json import checked_json
from soda_jax.convert.from_hf import from_huggingface
from soda_jax.errors import UserError

LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(exported, tmp_path):
    """A copy without soda.json and its checksums, like a folder that soda did not write."""
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "soda.json").unlink()
    shutil.rmtree(copy / "soda")
    return copy


def refused(folder, tmp_path, *words):
    options = {} if (folder / "soda.json").exists() else {"codebook_sizes": (6, 4, 4)}
    with pytest.raises(UserError) as caught:
        from_huggingface(folder, tmp_path / "work", **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert not [path for path in tmp_path.iterdir() if path != folder]


def file_of(folder, name):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][name]


def change(folder, name, make):
    """Replaces a tensor by `make(tensor)`; None removes it, from the index as well."""
    file = file_of(folder, name)
    tensors = load_file(file)
    made = make(tensors.pop(name))
    if made is not None:
        tensors[name] = made
    save_file(tensors, file, metadata={"format": "pt"})
    if made is None:
        index = folder / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        del content["weight_map"][name]
        index.write_text(json.dumps(content))


def edit(file, **changes):
    content = json.loads(file.read_text())
    content.update(changes)
    content.pop("sha256", None)
    file.write_text((checked_json if file.name == "soda.json" else json.dumps)(content))


def test_the_unchanged_copy_is_accepted(folder, tmp_path):
    from_huggingface(folder, tmp_path / "work", codebook_sizes=(6, 4, 4))


def test_a_missing_tensor(folder, tmp_path):
    change(folder, QUERY, lambda tensor: None)
    refused(folder, tmp_path, str(folder), QUERY, "missing")


def test_a_tensor_that_only_the_index_lists(folder, tmp_path):
    file = file_of(folder, QUERY)
    tensors = load_file(file)
    del tensors[QUERY]
    save_file(tensors, file)
    refused(folder, tmp_path, QUERY, file.name)


def test_an_extra_tensor(folder, tmp_path):
    file = file_of(folder, QUERY)
    save_file({**load_file(file), "model.layers.1.self_attn.q_proj.bias": np.ones(2)}, file)
    refused(folder, tmp_path, file.name, "q_proj.bias")


def test_a_wrong_shape(folder, tmp_path):
    change(folder, QUERY, lambda tensor: np.ascontiguousarray(tensor[:-1]))
    refused(folder, tmp_path, file_of(folder, QUERY).name, QUERY, "[31, 16]", "[32, 16]")


def test_an_unsupported_dtype(folder, tmp_path):
    change(folder, QUERY, lambda tensor: tensor.astype(np.int8))
    refused(folder, tmp_path, file_of(folder, QUERY).name, QUERY, "I8")


def test_a_truncated_file(folder, tmp_path):
    file = file_of(folder, QUERY)
    file.write_bytes(file.read_bytes()[:-10])
    refused(folder, tmp_path, str(file), "not a complete safetensors file")


def test_a_missing_file(folder, tmp_path):
    file = file_of(folder, QUERY)
    file.unlink()
    refused(folder, tmp_path, str(file), "missing")


def test_an_index_that_names_a_file_outside_the_folder(folder, tmp_path):
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][QUERY] = "../other.safetensors"
    index.write_text(json.dumps(content))
    refused(folder, tmp_path, index.name, "../other.safetensors")


def test_a_vocabulary_that_disagrees_with_the_tokenizer(folder, tmp_path):
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    edit(folder / "config.json", vocab_size=size + 1)
    refused(folder, tmp_path, "config.json", str(size), str(size + 1), "tokenizer.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, ("LlamaForCausalLM",)),
        ({"model_type": "qwen3_moe"}, ("qwen3_moe",)),
        ({"attention_bias": True}, ("attention_bias", "True")),
        ({"use_sliding_window": True}, ("use_sliding_window",)),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ("sliding_attention",)),
        ({"quantization_config": {"bits": 4}}, ("quantization_config",)),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ("yarn", "llama3")),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}},
            (
                "original_max_position_embeddings",
                "Transformers would use max_position_embeddings, 64",
            ),
        ),
        (
            {"rope_scaling": {**LLAMA3, "low_freq_factor": None}},
            ("low_freq_factor", "None", "positive number"),
        ),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, ("low_freq_factor 4.0", "below")),
        ({"num_hidden_layers": "two"}, ("num_hidden_layers", "'two'")),
        ({"num_key_value_heads": 3}, ("heads",)),
        ({"num_hidden_layers": 3}, ("model.layers.2.", "missing")),
        ({"tie_word_embeddings": True}, ("lm_head.weight", "tied")),
        ({"architectures": "Qwen3ForCausalLM"}, ("architectures 'Qwen3ForCausalLM'",)),
        ({"architectures": 5}, ("architectures 5",)),
        ({"layer_types": 5}, ("layer_types", "5")),
        ({"layer_types": [{}]}, ("layer_types", "{}")),
        ({"rope_scaling": "llama3"}, ("'llama3'", "not a JSON object")),
        ({"rope_scaling": None, "rope_theta": None}, ("rope_theta", "None")),
        ({"rope_scaling": None, "rope_theta": 10**400}, ("rope_theta",)),
        ({"rope_scaling": None, "rope_theta": float("inf")}, ("rope_theta", "inf")),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}, ("full_attention",)),
        ({"rope_scaling": {"rope_type": "llama3", "mscale": 2.0}}, ("mscale",)),
        ({"rms_norm_eps": float("nan")}, ("rms_norm_eps",)),
        ({"max_position_embeddings": "x"}, ("max_position_embeddings", "'x'")),
        ({"vocab_size": "276"}, ("vocab_size is '276'",)),
        ({"num_hidden_layers": 10**7}, ("num_hidden_layers 10,000,000",)),
    ],
)
def test_a_config_of_another_model_is_refused(folder, tmp_path, changes, words):
    edit(folder / "config.json", **changes)
    refused(folder, tmp_path, str(folder), *words)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "x"},
        {"step": -3},
        {"step": 10**30},
        {"crc32c": None},
        {"crc32c": []},
        {"views": {"a": {"bogus": 1}}},
        {"views": {"a": {"weight": "x"}}},
        {"sources": [{"name": "a"}]},
        {"codec_fingerprint": 7},
        {"data_digest": {}},
        {"format_version": 99},
    ],
)
def test_an_invalid_entry_of_soda_json_is_refused(exported, tmp_path, changes):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    edit(copy / "soda.json", **changes)
    refused(copy, tmp_path, "soda.json", next(iter(changes)).replace("_", " ").split()[0])


def test_a_config_with_too_deep_nesting(folder, tmp_path):
    (folder / "config.json").write_text("[" * 100_000)
    refused(folder, tmp_path, "config.json")


def test_weights_that_are_nan(folder, tmp_path):
    change(folder, "model.norm.weight", lambda tensor: tensor * np.nan)
    refused(folder, tmp_path, "not finite")


def test_a_broken_link(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text("{}")
    (tmp_path / "in" / "model.safetensors").symlink_to("blob")
    refused(tmp_path / "in", tmp_path, "model.safetensors", "link")


@pytest.mark.parametrize("file", [None, "", ".."])
def test_an_index_with_invalid_file_names(folder, tmp_path, file):
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][QUERY] = file
    index.write_text(json.dumps(content))
    refused(folder, tmp_path, index.name)


def test_a_model_that_was_trained_further_needs_changed(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    change(copy, QUERY, lambda tensor: tensor + 1)
    refused(copy, tmp_path, QUERY, "--changed")
    from_huggingface(copy, tmp_path / "work", changed=True)


def test_no_config(folder, tmp_path):
    (folder / "config.json").unlink()
    refused(folder, tmp_path, "config.json", "missing")


def test_a_config_that_is_not_json(folder, tmp_path):
    (folder / "config.json").write_text("{")
    refused(folder, tmp_path, "config.json")


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_a_pickle_is_named_and_never_opened(folder, tmp_path):
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, tmp_path, "pytorch_model.bin", "pickle")


def test_a_pickle_named_safetensors(folder, tmp_path):
    file = file_of(folder, QUERY)
    file.write_bytes(pickle.dumps(Bomb()))
    refused(folder, tmp_path, str(file))


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "config.json")


def test_the_checksums_of_an_export_detect_a_flipped_bit(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    file = file_of(copy, QUERY)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    refused(copy, tmp_path, file.name, "crc32c", "damaged")


def test_a_workdir_that_is_not_empty_is_unchanged(exported, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine").write_text("x")
    with pytest.raises(UserError, match="not an empty folder"):
        from_huggingface(exported, tmp_path / "work")
    assert (tmp_path / "work" / "mine").read_text() == "x"


def test_another_codec_than_that_of_the_model_is_refused(exported, tmp_path):
    for sizes, part in (((6, 4, 4), "codec"), ((6, 4), "vocabulary layout")):
        fingerprint = "x" * 32 if part == "codec" else "c" * 32
        codec = types.SimpleNamespace(fingerprint=fingerprint, codebook_sizes=sizes)
        layout = {} if part == "codec" else {"codebook_sizes": (6, 4, 4)}
        with pytest.raises(
            UserError, match=rf"the codec mel:a has the {part} .* give the codec of"
        ):
            from_huggingface(exported, tmp_path / "work", codec=codec, codec_spec="mel:a", **layout)
    assert not list(tmp_path.iterdir())
