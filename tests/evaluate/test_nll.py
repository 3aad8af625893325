"""The six validation losses and the bits per second of audio, of toy models."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from soda_jax.data.dataset import documents, make_dataset, open_splits
from soda_jax.errors import UserError
from soda_jax.evaluate.benchmarks.nll import VARIANTS
from soda_jax.evaluate.evaluators import EvaluationContext, EvaluationOptions
from soda_jax.evaluate.tables import text_report
from soda_jax.generate.checkpoint import TrainedDecoder
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config
from soda_jax.parallel import rules
from soda_jax.parallel.mesh import make_mesh
from soda_jax.parallel.placement import OnMesh
from soda_jax.registry import EVALUATORS
from soda_jax.schema import to_dict
from soda_jax.tokens.documents import View, render
from soda_jax.tokens.text import ByteTokenizer

MODEL = {
    "num_layers": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "num_kv_heads": 1,
    "head_dim": 8, "compute_dtype": "float32", "remat": "none",
    "rope": {"theta": 10_000.0, "factor": 1.0},
}  # fmt: skip
SIZES = (6, 4, 5)  # codebooks of the layout in conftest
FRAME_RATE = 10.0


@pytest.fixture
def decoder(layout):
    """decoder(config, scale=5.0, head="full"): a random model of the run `config`; scale 0 is uniform."""

    def make(config, scale=5.0, head="full"):
        functions = ModelFunctions(
            decoder_config(MODEL | {"head": head}, VocabularyBlocks.of(layout))
        )
        drawn = jax.jit(functions.init, static_argnums=0)(3)
        # Larger weights than at the start of training, so that the classes of tokens differ.
        params = jax.tree.map(lambda array: scale * array if array.ndim > 1 else array, drawn)
        metadata = {
            "config": {"model": MODEL},
            "layout": layout.to_json(),
            "codec_fingerprint": "toy",
            "tokenizer_fingerprint": ByteTokenizer.fingerprint,
            "data": to_dict(make_dataset(config).config),
        }
        return TrainedDecoder(4, metadata, layout, functions, params)

    return make


def score(decoder, **options):
    context = EvaluationContext("run", EvaluationOptions(tasks=("nll",), **options))
    vars(context)["model"] = decoder
    return EVALUATORS.get("nll", "tasks")(context)


def stream(config, name, view, layout):
    """The tokens of the validation split of a source under a view, cut to whole windows."""
    only = {**config, "sources": {name: config["sources"][name]}}
    tokens = [render(d.utterances, view, layout) for d in documents(open_splits(only))]
    length = config["sequence_length"]
    joined = np.concatenate(tokens)
    return joined[: len(joined) // length * length].reshape(-1, length)


def log_probabilities(decoder, windows, layout):
    """Log-probabilities of the tokens after the first of each window, in f64, document by document."""
    bound, found = decoder.model.bind(decoder.params), []
    for row in windows:
        segments = 1 + np.cumsum(np.r_[0, row[:-1] == layout.eos])
        positions = np.concatenate(
            [np.arange(n) for n in np.unique(segments, return_counts=True)[1]]
        )
        hidden = bound(row[None], segments[None].astype(np.int32), positions[None].astype(np.int32))
        logits = np.asarray(bound.logits(hidden)[0], np.float64)[:-1]
        shifted = logits - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        found.append(log_p[np.arange(len(row) - 1), row[1:]])
    return np.array(found)


def test_the_six_losses_are_those_of_a_plain_forward_pass(config, decoder, layout):
    model = decoder(config)
    result = score(model)
    assert not result["not_available"] and list(result["variants"]) == list(VARIANTS)
    views = {
        "text_first": ("speech", View("text_first", "S+A+T")),
        "audio_first": ("speech", View("audio_first", "S+A+T")),
        "audio_only": ("speech", View("text_first", "S+A")),
        "text_only": ("text", View("text_first", "text")),
    }
    found = {}
    for view, (name, how) in views.items():
        windows = stream(config, name, how, layout)
        found[view] = log_probabilities(model, windows, layout), windows[:, 1:]

    def wanted(view, chosen):
        log_p, targets = found[view]
        mask = chosen(targets)
        return -log_p[mask].mean(), int(mask.sum())

    # By ids, not by the classes of the layout: bytes, two specials, four markers, codebooks of 6, 4 and 5.
    audio, semantic = (lambda ids: ids >= 262), (lambda ids: (ids >= 262) & (ids < 268))
    text, every = (lambda ids: ids < 256), (lambda ids: ids >= 0)
    for name, (view, chosen) in {
        "audio_first_all": ("audio_first", every), "text_first_audio": ("text_first", audio),
        "text_first_semantic": ("text_first", semantic), "audio_only_audio": ("audio_only", audio),
        "audio_first_text": ("audio_first", text), "text_only_text": ("text_only", text),
    }.items():  # fmt: skip
        nll, tokens = wanted(view, chosen)
        row = result["variants"][name]
        assert row["tokens"] == tokens > 0
        assert row["nll"]["full"] == pytest.approx(nll, rel=1e-5), name
    nll, tokens = wanted("audio_only", audio)
    bits = result["bits_per_second"]["audio_only_audio"]
    assert bits["seconds"] == pytest.approx(tokens / 3 / FRAME_RATE)
    assert bits["full"] == pytest.approx(nll / math.log(2) * 3 * FRAME_RATE, rel=1e-5)
    # One byte is one token.
    nll, tokens = wanted("text_only", text)
    assert result["bits_per_byte"]["text_only_text"]["bytes"] == tokens
    assert result["bits_per_byte"]["text_only_text"]["full"] == pytest.approx(
        nll / math.log(2), rel=1e-5
    )
    trained = {n: row["sources"].popitem()[1]["trained"] for n, row in result["variants"].items()}
    assert trained == dict.fromkeys(VARIANTS, True) | {"audio_only_audio": False}


def test_a_uniform_model_needs_the_bits_of_its_ids(config, decoder, layout):
    result = score(decoder(config, scale=0.0, head="legal"))
    assert result["heads"] == ["full", "legal"]
    ids = layout.size
    for row in result["variants"].values():
        assert row["nll"]["full"] == pytest.approx(math.log(ids), rel=1e-6)
    for name in ("audio_only_audio", "text_first_audio"):
        bits = result["bits_per_second"][name]
        assert bits["full"] == pytest.approx(3 * FRAME_RATE * math.log2(ids), rel=1e-6)
    # Over legal ids the second and third codebook cost log2(4) and log2(5); a window may cut a frame.
    vector = result["loss_vectors"]["audio_only"]["legal"]
    assert vector["loss/acoustic_1"] == pytest.approx(math.log(4), rel=1e-6)
    assert vector["loss/acoustic_2"] == pytest.approx(math.log(5), rel=1e-6)
    # Before the semantic token of the first frame only its 6 ids are legal, later also audio_end.
    assert math.log(6) < vector["loss/semantic"] < math.log(7)
    legal = result["bits_per_second"]["audio_only_audio"]["legal"]
    assert legal == pytest.approx(FRAME_RATE * math.log2(6.7 * 4 * 5), rel=0.02)
    printed = text_report({"step": 4, "tasks": ["nll"], "nll": result})
    assert (
        "full ids" in printed and "legal ids" in printed and "bits per second of audio" in printed
    )
    assert "speech (the run does not train on this view)" in printed


def changed(config, **sources):
    return {**config, "sources": sources}


def test_a_variant_that_no_source_can_give_is_named_with_its_reason(config, decoder):
    speech, text = config["sources"]["speech"], config["sources"]["text"]
    only_text = score(decoder(changed(config, text=text)))
    assert list(only_text["variants"]) == ["text_only_text"]
    assert set(only_text["not_available"]) == VARIANTS.keys() - {"text_only_text"}
    assert only_text["not_available"]["audio_only_audio"] == "text: it is used without audio"
    assert only_text["bits_per_second"] == {} and only_text["frame_rate"] is None
    printed = text_report({"step": 4, "tasks": ["nll"], "nll": only_text})
    assert "audio_first_all      not available: text: it is used without audio" in printed
    semantic = changed(config, codes={**speech, "composition": "S"}, text=text)
    reason = "codes: it is used without acoustic tokens; text: it is used without audio"
    assert score(decoder(semantic))["not_available"]["text_first_audio"] == reason
    without_text = score(decoder(changed(config, codes={**speech, "composition": "S+A"})))
    assert list(without_text["variants"]) == ["audio_only_audio"]
    assert without_text["variants"]["audio_only_audio"]["sources"]["codes"]["trained"]
    assert without_text["not_available"]["audio_first_text"] == "codes: it is used without text"


def test_sources_with_fewer_codebooks_or_the_same_documents_do_not_count(config, decoder):
    speech = config["sources"]["speech"]
    mixed = changed(
        config,
        few={**speech, "codebooks": 1}, first={**speech, "order": "text_first"},
        second={**speech, "order": "audio_first"},
    )  # fmt: skip
    result = score(decoder(mixed))
    assert result["left_out"]["audio_first"] == {
        "few": "it is used with 1 of 3 codebooks", "second": "it has the documents of first",
    }  # fmt: skip
    row = result["variants"]["audio_first_all"]
    assert row["sources"].keys() == {"first"} and row["sources"]["first"]["trained"]
    assert row["tokens"] == score(decoder(config))["variants"]["audio_first_all"]["tokens"]


def test_a_limit_reads_part_of_the_windows_and_reports_their_number(
    config, decoder, write, tmp_path
):
    write(tmp_path / "large", validation=60)
    model = decoder(changed(config, speech={"path": str(tmp_path / "large")}))
    every, some = score(model), score(model, limit=8)
    assert some["windows"] == 3 * 8 < every["windows"]
    assert (
        some["variants"]["text_first_audio"]["tokens"]
        < every["variants"]["text_first_audio"]["tokens"]
    )
    assert score(model, limit=10_000)["variants"] == every["variants"]


def test_a_split_that_is_missing_everywhere_is_an_error(config, decoder, write, tmp_path):
    write(tmp_path / "none", validation=0)
    with pytest.raises(UserError, match="validation_fraction"):
        score(decoder(changed(config, speech={"path": str(tmp_path / "none")})))
    some = {**config["sources"], "speech": {"path": str(tmp_path / "none")}}
    result = score(decoder({**config, "sources": some}))
    reason = "speech: it has no validation split; text: it is used without audio"
    assert result["not_available"]["audio_first_all"] == reason


def test_the_head_can_be_chosen(config, decoder):
    result = score(decoder(config, head="legal"), head="legal")
    assert result["heads"] == ["legal"]
    assert result["variants"]["audio_first_all"]["nll"].keys() == {"legal"}


def test_the_losses_do_not_depend_on_the_mesh(config, decoder):
    model = decoder(config)
    mesh = make_mesh({"data": 4, "fsdp": 2}, jax.devices()[:8])
    params = jax.tree.map(
        lambda leaf, axes: jax.device_put(leaf, rules.sharding(mesh, axes, leaf.shape)),
        model.params, model.model.axes,
    )  # fmt: skip
    sharded = dataclasses.replace(model, params=params, placement=OnMesh(mesh))
    one, many = score(model)["variants"], score(sharded)["variants"]
    for name, row in one.items():
        assert many[name]["tokens"] == row["tokens"]
        assert many[name]["nll"]["full"] == pytest.approx(row["nll"]["full"], rel=1e-5)
