"""A text model is extended to text and audio."""

import dataclasses
import json

import convert_toys as toys
import numpy as np
import pytest
from convert_toys import CODEBOOKS, fields, tiny
from test_round_trip import same, weights_of
from toys import random_params

from soda_jax.convert.architecture import config_json, decoder_of
from soda_jax.convert.extend import NewRows
from soda_jax.convert.from_hf import from_huggingface
from soda_jax.convert.qwen3 import HuggingFaceWeights, exported_tensors, tensor_shapes
from soda_jax.convert.safetensors_folder import TensorFolder, write_tensors
from soda_jax.convert.to_hf import to_huggingface
from soda_jax.convert.verify import logits
from soda_jax.convert.weights import Weights, whole
from soda_jax.errors import UserError
from soda_jax.files import write_json
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
from soda_jax.progress import progress
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.text import load_tokenizer, train_bpe
from soda_jax.train.loop import DONE, train
from tokenize_pipeline.retext import retext

ROPE = {
    "theta": 1e6,
    "factor": 1.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position": 8192,
}
TEXT = 258  # bytes, BOS and EOS
IDS = TEXT + 1  # and a special token
TABLES = {"embedding": "embedding_first", "head": "head_first"}
PADDED = 320  # rows of the text model, more than its tokenizer has ids


def text_model(folder, tie_embeddings=True, specials=("<|audio_start|>",)):
    """Writes a Qwen3 text model with more rows than ids and a special token named like a marker.

    Returns: its embedding `[PADDED, width]` and head.
    """
    tokenizer = train_bpe(["some words of some text"], TEXT)
    content = json.loads(tokenizer.content)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for number, name in enumerate(specials, tokenizer.vocabulary_size):
        content["added_tokens"].append({"id": number, "content": name, "special": True, **flags})
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    vocabulary = VocabularyBlocks(PADDED, ())
    config = decoder_config(
        fields(tie_embeddings=tie_embeddings, rope=ROPE, rms_norm_eps=1e-6), vocabulary
    )
    params = random_params(ModelFunctions(config), 3)
    params["embedding_first"] = params["embedding_first"] + 0.5  # a mean other than zero

    class Params(Weights):
        def read(self, name, first, last):
            layers, _, inner = name.rpartition("/")
            values = params[layers][inner] if layers else params[TABLES.get(name, name)]
            return np.asarray(values[first:last])

    weights = Params()
    weights.config = config
    shapes = tensor_shapes(config, PADDED)
    with progress("writing", None) as bar:
        write_tensors(folder, shapes, exported_tensors(weights), "float32", 1 << 30, bar)
    write_json(folder / "config.json", config_json(config, 256, 257, 64, "float32"))
    embedding = np.asarray(params["embedding_first"])[:PADDED]
    return embedding, embedding if tie_embeddings else np.asarray(params["head_first"])[:PADDED]


def extend(folder, workdir, **options):
    return from_huggingface(folder, workdir, extend=NewRows(**options), codebook_sizes=CODEBOOKS)


@pytest.fixture
def base(tmp_path):
    return text_model(tmp_path / "qwen")


def test_rope_and_eps_of_the_text_model_are_kept(base, tmp_path):
    _, config = extend(tmp_path / "qwen", tmp_path / "work")
    tokenizer = load_tokenizer(tmp_path / "work" / "tokenizer")
    _, metadata = weights_of(tmp_path / "work")
    layout = VocabularyLayout.from_json(metadata["layout"])
    assert layout.text_size == tokenizer.vocabulary_size == IDS
    assert layout.codebook_sizes == CODEBOOKS and layout.size == IDS + 4 + sum(CODEBOOKS)
    assert metadata["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert (config.rope.theta, config.rope.factor, config.rms_norm_eps) == (1e6, 1.0, 1e-6)
    assert not config.tie_embeddings


def test_text_rows_are_kept_and_a_tied_embedding_is_copied_to_the_head(base, tmp_path):
    extend(tmp_path / "qwen", tmp_path / "work")
    weights, _ = weights_of(tmp_path / "work")
    embedding, head = base
    np.testing.assert_array_equal(weights.read("embedding", 0, IDS), embedding[:IDS])
    np.testing.assert_array_equal(weights.read("head", 0, IDS), head[:IDS])


def test_the_logits_of_text_are_those_of_the_text_model(base, tmp_path):
    extend(tmp_path / "qwen", tmp_path / "work")
    weights, _ = weights_of(tmp_path / "work")
    tokens = np.array([256, 40, 41, 200, 12], np.int32)
    folder = TensorFolder(tmp_path / "qwen")
    file = tmp_path / "qwen" / "config.json"
    old_config = decoder_of(json.loads(file.read_text()), VocabularyBlocks(PADDED, ()), file)
    old = logits(HuggingFaceWeights(folder, old_config, PADDED), tokens)
    np.testing.assert_allclose(logits(weights, tokens)[:, :IDS], old[:, :IDS], atol=1e-5)


def test_a_special_token_named_like_a_marker_gives_its_row(base, tmp_path):
    extend(tmp_path / "qwen", tmp_path / "work")
    weights, metadata = weights_of(tmp_path / "work")
    layout = VocabularyLayout.from_json(metadata["layout"])
    marker = layout.audio_start
    assert marker != TEXT
    np.testing.assert_array_equal(weights.read("embedding", marker, marker + 1)[0], base[0][TEXT])


def test_an_extended_model_is_exported_with_its_origin(base, tmp_path):
    extend(tmp_path / "qwen", tmp_path / "work")
    to_huggingface(tmp_path / "work", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| started from | qwen, converted, extended by rows for markers and audio" in card
    assert "The sources are not known." in card and "No documents were left out" not in card
    assert "which trained it" not in card
    from_huggingface(tmp_path / "out", tmp_path / "back")
    same(weights_of(tmp_path / "work")[0], weights_of(tmp_path / "back")[0])


def test_a_run_starts_on_converted_data(base, tmp_path):
    _, config = extend(tmp_path / "qwen", tmp_path / "work")
    data = toys.write_data(tmp_path / "data")
    retext(data, tmp_path / "work" / "tokenizer", tmp_path / "retexted")
    asked = tiny(tmp_path / "retexted", steps=2, start_from=str(tmp_path / "work"))
    asked.model.rms_norm_eps = config.rms_norm_eps
    asked.model.rope.update(dataclasses.asdict(config.rope))
    assert train(asked, tmp_path / "run") == DONE
    trained, metadata = weights_of(tmp_path / "run")
    assert metadata["started_from"]["step"] == 0 and metadata["windows"] == 2 * asked.batch_size
    assert (trained.layer(0)["gate"] != weights_of(tmp_path / "work")[0].layer(0)["gate"]).any()


def test_new_rows_have_mean_and_standard_deviation_of_the_old_rows(tmp_path):
    embedding, head = text_model(tmp_path / "qwen", tie_embeddings=False, specials=())
    sizes = (2000, 1000)
    folder, work = tmp_path / "qwen", tmp_path / "work"
    from_huggingface(folder, work, extend=NewRows(), codebook_sizes=sizes)
    weights, _ = weights_of(work)
    for table, old in (("embedding", embedding[:TEXT]), ("head", head[:TEXT])):
        new = weights.read(table, TEXT, TEXT + 4 + sum(sizes))
        error = old.std(0) / np.sqrt(len(new))
        assert (np.abs(new.mean(0) - old.mean(0)) < 5 * error).all()
        np.testing.assert_allclose(new.std(0), old.std(0), rtol=0.1)
        assert len(np.unique(new, axis=0)) == len(new)


def test_new_rows_depend_on_the_seed_or_are_the_mean(base, tmp_path):
    for name, options in (
        ("first", {"seed": 1}),
        ("again", {"seed": 1}),
        ("other", {"seed": 2}),
        ("mean", {"spread": 0.0}),
    ):
        extend(tmp_path / "qwen", tmp_path / name, **options)
    new = {
        name: weights_of(tmp_path / name)[0].read("embedding", IDS + 4, IDS + 18)
        for name in ("first", "again", "other", "mean")
    }
    np.testing.assert_array_equal(new["first"], new["again"])
    assert (new["first"] != new["other"]).all()
    np.testing.assert_allclose(new["mean"], np.tile(base[0][:IDS].mean(0), (14, 1)), rtol=1e-5)


def test_rows_do_not_depend_on_how_they_are_read(base, tmp_path):
    extend(tmp_path / "qwen", tmp_path / "work")
    weights, _ = weights_of(tmp_path / "work")
    made = whole(weights)
    rows = weights.config.vocabulary.row_of_id
    table = np.concatenate([made["head_first"], made["head_groups"].reshape(-1, 16)])[rows]
    parts = [weights.read("head", i, i + 1) for i in range(len(rows))]
    np.testing.assert_array_equal(table, np.concatenate(parts))


def test_extend_vocabulary_is_refused_with_and_required_without_markers(exported, base, tmp_path):
    with pytest.raises(UserError, match="without --extend-vocabulary"):
        extend(exported, tmp_path / "work")
    with pytest.raises(UserError, match="--extend-vocabulary"):
        from_huggingface(tmp_path / "qwen", tmp_path / "work")


def test_fewer_rows_than_the_tokenizer_has_ids(base, tmp_path):
    file = tmp_path / "qwen" / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "vocab_size": 200}))
    with pytest.raises(UserError, match=f"vocab_size is 200, fewer than the {IDS} ids"):
        extend(tmp_path / "qwen", tmp_path / "work")
