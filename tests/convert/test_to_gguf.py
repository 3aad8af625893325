"""GGUF files read back, and input that cannot be converted; tests/parity/test_llamacpp.py runs them."""

import json

import gguf
import numpy as np
import pytest
from convert_toys import fields, write_run
from tokenizer_toys import every

from soda_jax.checkpoints import CheckpointReader, folder
from soda_jax.checkpoints.slices import SliceReader
from soda_jax.convert.qwen3 import exported_tensors
from soda_jax.convert.to_gguf import grammar_path, speech_grammar, to_gguf
from soda_jax.convert.to_hf import to_huggingface
from soda_jax.convert.weights import StoredWeights
from soda_jax.errors import UserError
from soda_jax.model import decoder_from_metadata
from soda_jax.tokens import VocabularyLayout

ROPE = {"theta": 10_000.0, "factor": 1.0}


def export(tmp_path, tokenizer=None, **changes):
    """Writes a random run and its export; returns the folder of the export."""
    write_run(
        tmp_path / "run", fields(rope=ROPE, head_dim=32, hidden_size=64, **changes), tokenizer
    )
    to_huggingface(tmp_path / "run", tmp_path / "hf")
    return tmp_path / "run", tmp_path / "hf"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_file_has_the_tensors_and_settings_of_the_run(tmp_path, tied):
    run, source = export(tmp_path, tie_embeddings=tied)
    done = to_gguf(source, tmp_path / "model.gguf", "f32")
    read = gguf.GGUFReader(tmp_path / "model.gguf")
    reader = CheckpointReader(folder.of_run(run))
    layout = VocabularyLayout.from_json(reader.metadata(7)["layout"])
    config = decoder_from_metadata(reader.metadata(7), layout)
    weights = StoredWeights(SliceReader(reader.path(7)), config)
    ours = sorted((values.size, float(values.sum())) for _, values in exported_tensors(weights))
    theirs = sorted((int(t.n_elements), float(np.asarray(t.data).sum())) for t in read.tensors)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    assert done.parameters == config.parameters == sum(int(t.n_elements) for t in read.tensors)
    assert done.bytes == (tmp_path / "model.gguf").stat().st_size

    def value(key):
        return read.fields[key].contents()

    assert value("qwen3.block_count") == config.num_layers
    assert value("qwen3.attention.head_count_kv") == config.num_kv_heads
    assert value("qwen3.rope.freq_base") == 10_000.0
    assert value("tokenizer.ggml.bos_token_id") == layout.bos
    pieces = value("tokenizer.ggml.tokens")
    assert len(pieces) == layout.size and pieces[layout.audio_end] == "<|audio_end|>"
    assert pieces[layout.audio_base + 7] == chr(0xE007)
    assert ("output.weight" in {tensor.name for tensor in read.tensors}) is not tied


def test_the_grammar_names_the_codebooks_in_order_and_the_marker(tmp_path):
    _, source = export(tmp_path)
    to_gguf(source, tmp_path / "a" / "model.gguf")
    layout = VocabularyLayout.soda()
    assert speech_grammar(layout, 2) == (
        f"root ::= frame+ <[{layout.audio_end}]>\nframe ::= [\\uE000-\\uE7FF] [\\uE800-\\uEFFF]\n"
    )
    assert speech_grammar(layout, 8).endswith("[\\U00011800-\\U00011FFF]\n")
    assert grammar_path(tmp_path / "a" / "model.gguf").read_text("utf-8").count("[\\u") == 3
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "model.gguf", "model.speech.gbnf",
    ]  # fmt: skip


def test_a_model_with_scaled_rotary_angles_is_refused(tmp_path):
    write_run(tmp_path / "run", fields())
    to_huggingface(tmp_path / "run", tmp_path / "hf")
    with pytest.raises(UserError, match=r"factor 4, and llama\.cpp's qwen3 graph has no frequency"):
        to_gguf(tmp_path / "hf", tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*")) and not list(tmp_path.glob(".*partial"))


def test_a_pre_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path):
    _, folder = export(tmp_path, every()["trained"])
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["pre_tokenizer"] = {"type": "Whitespace"}
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(UserError, match=r"llama\.cpp does not know this pre-tokenizer"):
        to_gguf(folder, tmp_path / "model.gguf")


def test_bad_input_is_refused(tmp_path):
    _, folder = export(tmp_path)
    with pytest.raises(UserError, match="give a folder that soda convert to-hf wrote"):
        to_gguf(tmp_path / "nothing", tmp_path / "model.gguf")
    with pytest.raises(UserError, match="is a run: export it first with soda convert to-hf"):
        to_gguf(tmp_path / "run", tmp_path / "model.gguf")
    (tmp_path / "taken.gguf").write_text("x")
    with pytest.raises(UserError, match="exists or is a URL"):
        to_gguf(folder, tmp_path / "taken.gguf")
    with pytest.raises(UserError, match="dtype 'q4_0' is unknown"):
        to_gguf(folder, tmp_path / "model.gguf", "q4_0")
    with pytest.raises(
        UserError, match="intermediate_size 24 is not a multiple of 32: use --dtype=f16"
    ):
        to_gguf(folder, tmp_path / "model.gguf", "q8_0")
