import json

import convert_toys as toys
import ml_dtypes
import numpy as np
import pytest
from gcs import require_bucket
from safetensors.numpy import load_file

from soda_jax.checkpoints import CheckpointReader
from soda_jax.checkpoints.slices import SliceReader
from soda_jax.convert import qwen3
from soda_jax.convert.from_hf import from_huggingface
from soda_jax.convert.safetensors_folder import TensorFolder
from soda_jax.convert.to_hf import to_huggingface
from soda_jax.convert.weights import StoredWeights, whole
from soda_jax.generate.checkpoint import load_decoder


def weights_of(workdir):
    reader = CheckpointReader(workdir / "checkpoints")
    step = reader.choose(params_only=True).step
    config = load_decoder(workdir).model.config
    return StoredWeights(SliceReader(reader.path(step)), config), reader.metadata(step)


def same(first, second):
    """Asserts that all rows of ids and all other parameters are equal, bit for bit."""
    vocabulary = first.config.vocabulary
    for table in ("embedding", "head"):
        rows = [w.read(table, 0, vocabulary.size) for w in (first, second)]
        np.testing.assert_array_equal(rows[0].view(np.uint32), rows[1].view(np.uint32))
    for number in range(first.config.num_layers):
        mine, theirs = first.layer(number), second.layer(number)
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    norms = [w.read("final_norm", 0, w.config.hidden_size) for w in (first, second)]
    np.testing.assert_array_equal(*norms)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [4_000, 1 << 30])
def test_a_round_trip_preserves_every_bit(tmp_path, tied, shard_bytes):
    toys.write_run(tmp_path / "run", toys.fields(tie_embeddings=tied))
    to_huggingface(tmp_path / "run", tmp_path / "out", shard_bytes=shard_bytes)
    from_huggingface(tmp_path / "out", tmp_path / "back")
    before, old = weights_of(tmp_path / "run")
    after, new = weights_of(tmp_path / "back")
    same(before, after)
    assert before.config == after.config.__class__(
        **{**after.config.__dict__, "compute_dtype": "float32", "remat": "none"}
    )
    for key in ("layout", "tokenizer_fingerprint", "codec_fingerprint", "data_digest"):
        assert new[key] == old[key]
    assert CheckpointReader(tmp_path / "back" / "checkpoints").steps() == [7]


def test_a_second_export_has_the_same_tensors_in_other_files(exported, tmp_path):
    assert len(list(exported.glob("*.safetensors"))) > 3
    from_huggingface(exported, tmp_path / "back")
    to_huggingface(tmp_path / "back", tmp_path / "again")
    one, many = TensorFolder(tmp_path / "again"), TensorFolder(exported)
    assert one.tensors.keys() == many.tensors.keys()
    for name in one.tensors:
        np.testing.assert_array_equal(one.read(name), many.read(name))


def test_an_exported_table_is_one_matrix_by_id_without_padding(exported, tmp_path):
    functions, params, _ = toys.write_run(tmp_path / "again")
    vocabulary = functions.config.vocabulary
    assert vocabulary.rows > vocabulary.size  # with padding
    folder = TensorFolder(exported)
    for table, name in (("embedding", qwen3.EMBEDDING), ("head", qwen3.HEAD)):
        matrix = folder.read(name)
        assert matrix.shape == (vocabulary.size, functions.config.hidden_size)
        first, groups = (np.asarray(params[f"{table}_{part}"]) for part in ("first", "groups"))
        np.testing.assert_array_equal(
            matrix[: vocabulary.first_rows], first[: vocabulary.first_rows]
        )
        at = vocabulary.first_rows
        for group, size in enumerate(toys.CODEBOOKS):
            np.testing.assert_array_equal(matrix[at : at + size], groups[group, :size])
            at += size


def test_a_linear_layer_becomes_outputs_by_inputs(exported, tmp_path):
    _, params, _ = toys.write_run(tmp_path / "again")
    layers = params["layers"]
    folder = TensorFolder(exported)
    query = folder.read("model.layers.1.self_attn.q_proj.weight")
    output = folder.read("model.layers.1.self_attn.o_proj.weight")
    down = folder.read("model.layers.1.mlp.down_proj.weight")
    head_dim = toys.SHAPE["head_dim"]
    # Their row h · head_dim + i is unit i of head h.
    np.testing.assert_array_equal(query[2 * head_dim + 3], layers["query"][1, :, 2, 3])
    np.testing.assert_array_equal(output[:, 2 * head_dim + 3], layers["output"][1, 2, 3])
    np.testing.assert_array_equal(down, np.asarray(layers["down"][1]).T)


def test_bf16_is_rounded_once_and_then_exact(run, tmp_path):
    done = to_huggingface(run, tmp_path / "half", dtype="bfloat16")
    assert done.logits.difference > 0
    assert done.logits.difference < done.logits.deviation / 10
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {array.dtype for array in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    from_huggingface(tmp_path / "half", tmp_path / "back")
    to_huggingface(tmp_path / "back", tmp_path / "again", dtype="bfloat16")
    for name, array in load_file(tmp_path / "again" / "model.safetensors").items():
        np.testing.assert_array_equal(array.view(np.uint16), tensors[name].view(np.uint16))


def test_a_converted_checkpoint_loads_like_one_of_a_run(run, exported, tmp_path):
    from_huggingface(exported, tmp_path / "back")
    before, after = load_decoder(run), load_decoder(tmp_path / "back")
    assert after.step == before.step == 7 and after.layout == before.layout
    rows = before.model.config.vocabulary.row_of_id
    table = [
        np.concatenate([d.params["head_first"], d.params["head_groups"].reshape(-1, 16)])[rows]
        for d in (before, after)
    ]
    np.testing.assert_array_equal(*table)
    np.testing.assert_array_equal(before.params["layers"]["gate"], after.params["layers"]["gate"])


def test_whole_gives_the_parameters_of_a_decoder(run):
    weights, _ = weights_of(run)
    decoder = load_decoder(run)
    made = whole(weights)
    for name in ("query", "down", "key_norm"):
        np.testing.assert_array_equal(made["layers"][name], decoder.params["layers"][name])
    rows = weights.config.vocabulary.row_of_id
    table = np.concatenate([made["head_first"], made["head_groups"].reshape(-1, 16)])
    np.testing.assert_array_equal(table[rows], weights.read("head", 0, len(rows)))


def test_checkpoints_on_a_bucket_are_read_there(tmp_path):
    directory = f"{require_bucket()}/{tmp_path.name}/checkpoints"
    toys.write_run(tmp_path / "run", directory=directory)
    assert not (tmp_path / "run" / "checkpoints").exists()
    to_huggingface(tmp_path / "run", tmp_path / "out")
    toys.write_run(tmp_path / "local")
    to_huggingface(tmp_path / "local", tmp_path / "same")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "same"))
    for name in second:
        np.testing.assert_array_equal(first[name], second[name])
