"""If files of a folder disagree, soda follows Transformers or refuses the folder and names both."""

import json
import shutil

import numpy as np
import pytest
from convert_toys import CODEBOOKS
from safetensors.numpy import load_file, save_file
from test_damaged_input import LLAMA3, edit, refused
from test_round_trip import same, weights_of

from soda_jax.convert import architecture, second_reading
from soda_jax.convert.from_hf import from_huggingface
from soda_jax.errors import UserError

PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
ABSENT = "absent"
THETA = 10_000.0  # of the exported run


@pytest.fixture
def folder(exported, tmp_path):
    """A copy without soda.json, like a folder that soda did not write."""
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "soda.json").unlink()
    shutil.rmtree(copy / "soda")
    return copy


def without(folder, *names):
    content = json.loads((folder / "config.json").read_text())
    for name in names:
        del content[name]
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # A Transformers 5 config with an entry that model cards recommend.
        (
            {
                "rope_parameters": {**PLAIN, "rope_theta": 1e6},
                "rope_scaling": LLAMA3,
                "rope_theta": ABSENT,
            },
            ("rope_scaling is", "rope_parameters is", "uses only rope_scaling", "10,000"),
        ),
        (
            {"rope_parameters": PLAIN, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            ("rope_scaling", "yarn"),
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
            ("rope_parameters", "yarn"),
        ),
        (
            {"rope_scaling": None, "rope_parameters": {**PLAIN, "rope_theta": 1e6}},
            ("rope_theta is 1000000.0 in rope_parameters and 10000.0 at the top level",),
        ),
        (
            {"original_max_position_embeddings": 16},
            ("original_max_position_embeddings is 32 in rope_scaling and 16 at the top level",),
        ),
        ({"rope_parameters": 5}, ("rope_parameters is 5, not a JSON object",)),
        (
            {"rope_scaling": {**LLAMA3, "partial_rotary_factor": 0.5}},
            ("partial_rotary_factor is 0.5, this decoder supports only 1.0",),
        ),
        ({"partial_rotary_factor": 0.5}, ("partial_rotary_factor",)),
        (
            {"per_layer_config": {"0": {"intermediate_size": 8}}},
            ("per_layer_config", "replaces other settings"),
        ),
        ({"text_config": {"hidden_size": 32}}, ("text_config", "replaces other settings")),
        ({"configuration_files": ["config.4.0.json"]}, ("configuration_files",)),
        ({"transformers_weights": "other.safetensors"}, ("transformers_weights",)),
        ({"eos_token_id": 3}, ("eos_token_id is 3", "tokenizer.json has 257")),
        ({"bos_token_id": 3}, ("bos_token_id is 3", "tokenizer.json has 256")),
    ],
)
def test_a_config_with_contradicting_entries_is_refused(folder, tmp_path, changes, words):
    if "eos_token_id" in changes or "bos_token_id" in changes:
        (folder / "generation_config.json").unlink()
    edit(folder / "config.json", **changes)
    without(folder, *(name for name, value in changes.items() if value == ABSENT))
    refused(folder, tmp_path, "config.json", *words)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {**LLAMA3, "rope_theta": THETA}},
        {"rope_parameters": {**LLAMA3, "rope_theta": int(THETA)}, "rope_scaling": None},
        {"rope_parameters": {**LLAMA3, "partial_rotary_factor": 1.0}, "rope_scaling": {}},
        {"original_max_position_embeddings": 32},
        {"rope_scaling": {**LLAMA3, "type": "llama3"}},
        {"eos_token_id": [3, 257]},
        {"dtype": "bfloat16", "torch_dtype": "float32"},
    ],
)
def test_entries_that_agree_are_one_model(run, folder, tmp_path, changes):
    edit(folder / "config.json", **changes)
    from_huggingface(folder, tmp_path / "work", codebook_sizes=CODEBOOKS)
    same(weights_of(run)[0], weights_of(tmp_path / "work")[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", "151,936"),
        ("hidden_size", "4,096"),
        ("intermediate_size", "22,016"),
        ("num_hidden_layers", "32"),
        ("num_attention_heads", "32"),
        ("num_key_value_heads", "32"),
        ("rope_theta", "10,000"),
    ],
)
def test_the_message_about_a_missing_field_states_what_transformers_would_use(
    folder, tmp_path, name, value
):
    without(folder, name)
    refused(folder, tmp_path, f"config.json has no {name}; Transformers would use {value}: write")


def test_null_key_value_heads_default_to_the_number_of_heads(folder):
    content = json.loads((folder / "config.json").read_text())
    blocks = architecture.VocabularyBlocks(content["vocab_size"], ())
    config = architecture.decoder_of({**content, "num_key_value_heads": None}, blocks, folder)
    assert config.num_kv_heads == config.num_heads == content["num_attention_heads"]


def test_a_single_file_overrides_the_index_of_older_shards(run, folder, tmp_path, capsys):
    index = folder / "model.safetensors.index.json"
    tensors = {}
    for file in set(json.loads(index.read_text())["weight_map"].values()):
        tensors |= load_file(folder / file)
        old = {name: np.zeros_like(values) for name, values in load_file(folder / file).items()}
        save_file(old, folder / file)
    save_file(tensors, folder / "model.safetensors")
    from_huggingface(folder, tmp_path / "work", codebook_sizes=CODEBOOKS)
    same(weights_of(run)[0], weights_of(tmp_path / "work")[0])
    assert "model.safetensors.index.json is ignored, as in Transformers" in capsys.readouterr().err
    for file in folder.glob("model-*"):
        file.unlink()
    from_huggingface(folder, tmp_path / "again", codebook_sizes=CODEBOOKS)
    same(weights_of(run)[0], weights_of(tmp_path / "again")[0])


def test_a_tensor_in_two_shards_is_refused(folder, tmp_path):
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    name, values = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: values + 1}, second)
    refused(folder, tmp_path, name, first.name, second.name)


def test_a_pickle_next_to_safetensors_is_never_read(run, folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    from_huggingface(folder, tmp_path / "work", codebook_sizes=CODEBOOKS)
    same(weights_of(run)[0], weights_of(tmp_path / "work")[0])


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_unmerged_adapter_is_refused(folder, tmp_path, file):
    (folder / file).write_text("{}")
    refused(folder, tmp_path, file, "merge_and_unload")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("added_tokens.json", {"<new>": 1000}, ("'<new>' with id 1000", "lacks it")),
        ("added_tokens.json", {"<|text_start|>": 3}, ("'<|text_start|>' with id 3", "as id 258")),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"1000": {"content": "<new>"}}},
            ("'<new>' with id 1000",),
        ),
        ("tokenizer_config.json", {"eos_token": "<new>"}, ("'<new>'", "lacks it")),
        ("tokenizer_config.json", {"extra_special_tokens": {"a": "<new>"}}, ("'<new>'",)),
        ("special_tokens_map.json", {"additional_special_tokens": ["<new>"]}, ("'<new>'",)),
        ("special_tokens_map.json", {"pad_token": {"content": "<new>"}}, ("'<new>'",)),
    ],
)
def test_tokens_missing_from_tokenizer_json_are_refused(folder, tmp_path, file, content, words):
    (folder / file).write_text(json.dumps(content))
    refused(folder, tmp_path, file, *words)


def test_an_export_whose_config_was_changed_is_refused(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    edit(copy / "config.json", rope_theta=20_000.0)
    refused(copy, tmp_path, "config.json", "model.rope is", "--changed")
    edit(copy / "config.json", rope_theta=THETA, rms_norm_eps=1e-6)
    refused(copy, tmp_path, "config.json", "model.rms_norm_eps is 1e-06, and 1e-05 in soda.json")


@pytest.mark.parametrize("name", ["soda.json", "soda/tokenizer/tokenizer.json"])
def test_a_flipped_bit_in_the_files_of_soda_is_detected(exported, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    sound = (copy / name).read_bytes()
    for offset in range(0, len(sound), max(1, len(sound) // 40)):
        content = bytearray(sound)
        content[offset] ^= 1 << offset % 8
        (copy / name).write_bytes(content)
        refused(copy, tmp_path, name)


def test_the_verification_finds_what_the_conversion_misread(folder, tmp_path, monkeypatch):
    """A former bug: rope_parameters were preferred, on both sides of the verification."""
    edit(folder / "config.json", rope_parameters={**PLAIN, "rope_theta": THETA})
    monkeypatch.setattr(architecture, "_ROPE_ENTRIES", ("rope_parameters",))
    refused(
        folder,
        tmp_path,
        "an independent reading of the folder differs from the conversion",
        "rotary frequencies",
    )


@pytest.mark.parametrize("field", ["num_heads", "num_kv_heads", "rms_norm_eps", "tie_embeddings"])
def test_the_second_reading_compares_every_setting_that_no_tensor_shows(folder, monkeypatch, field):
    from soda_jax.convert.safetensors_folder import TensorFolder

    content = json.loads((folder / "config.json").read_text())
    blocks = architecture.VocabularyBlocks(content["vocab_size"], ())
    config = architecture.decoder_of(content, blocks, folder)
    tensors = TensorFolder(folder)
    second_reading.check(tensors, config)
    other = {"num_heads": 8, "num_kv_heads": 4, "rms_norm_eps": 1e-6, "tie_embeddings": True}[field]
    object.__setattr__(config, field, other)
    with pytest.raises(UserError, match=r"an independent reading .* please report it"):
        second_reading.check(tensors, config)
