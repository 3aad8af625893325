"""The likelihood benchmarks, from files in their published formats to scores of a toy model."""

import dataclasses
import shutil

import benchmark_files as files
import jax
import numpy as np
import pytest
from toy_speech import LAYOUT, make_functions, make_model, scores_of
from toy_speech import open_context as open_benchmark

from soda_jax.errors import UserError
from soda_jax.evaluate.benchmarks._pairs import audio_sequence, text_sequence
from soda_jax.evaluate.benchmarks.hellaswag import clean, read_hellaswag
from soda_jax.evaluate.evaluators import EvaluationContext, EvaluationOptions, evaluate
from soda_jax.evaluate.likelihood import ModelLikelihood, ScoredSequence, TokenSums, _bucket
from soda_jax.evaluate.suites import LIKELIHOOD, SUITES
from soda_jax.evaluate.tables import text_report
from soda_jax.model.placement import OneDevice
from soda_jax.parallel import rules
from soda_jax.parallel.mesh import make_mesh
from soda_jax.parallel.placement import OnMesh
from soda_jax.registry import EVALUATORS
from soda_jax.tokens.grammar import grammar
from soda_jax.tokens.text import ByteTokenizer

WRITERS = {"salmon": files.write_salmon, "hellaswag": files.write_hellaswag}


@pytest.fixture(scope="module")
def functions():
    return make_functions()


@pytest.fixture(scope="module")
def model(functions):
    return make_model(functions)


class Knows:
    """Gives probability 1 to loud frames and known texts."""

    heads, class_names = ("full",), tuple(LAYOUT.class_names)
    known = ("two", "eight", "six", "is here")

    def __call__(self, sequences):
        for number, sequence in enumerate(sequences):
            ids = sequence.ids[sequence.first : sequence.last]
            nll, count = np.zeros(len(self.class_names)), np.zeros(len(self.class_names))
            text = ByteTokenizer().decode(ids)
            for token in ids:
                kind = LAYOUT.class_of_id[token]
                count[kind] += 1
                if token >= LAYOUT.audio_base:
                    nll[kind] += (token - LAYOUT.audio_base) % 6 != 5
                else:
                    nll[kind] += not any(word in text for word in self.known)
            yield [number], {"full": [TokenSums(nll, count)]}


def open_context(model, tmp_path, task, likelihood=None, **options):
    folder = WRITERS.get(task, files.write_zerospeech)(tmp_path / task)
    return open_benchmark(model, task, folder, likelihood, **options)


@pytest.mark.parametrize("task", LIKELIHOOD)
def test_a_model_that_knows_the_answers_scores_one(model, tmp_path, task):
    scores = scores_of(open_context(model, tmp_path, task, Knows()))
    assert scores["failed"] == [] and scores["items"] == scores["scored"] > 0
    for kinds in scores["accuracy"].values():
        for name, parts in kinds.items():
            for part, row in parts.items():
                if task != "hellaswag":
                    assert row["accuracy"] == 1.0, (name, part)
    assert set(scores["accuracy"]["full"]) == (
        {"all"} if task in ("twuggy", "tblimp", "hellaswag") else {"all", "semantic"}
    )


def test_pairs_of_all_voices_and_parts_are_read(model, tmp_path):
    swuggy = scores_of(open_context(model, tmp_path, "swuggy", Knows()))
    assert swuggy["items"] == 6  # three pairs, two voices
    twuggy = scores_of(open_context(model, tmp_path, "twuggy", Knows()))
    assert twuggy["items"] == 3
    sblimp = scores_of(open_context(model, tmp_path, "sblimp", Knows()))
    parts = sblimp["accuracy"]["full"]["all"]
    assert {name: row["items"] for name, row in parts.items()} == {
        "all": 3, "agreement": 2, "filler_gap": 1,
    }  # fmt: skip
    salmon = scores_of(open_context(model, tmp_path, "salmon", Knows()))
    assert set(salmon["accuracy"]["full"]["all"]) == {
        "all", "gender_consistency", "rir_consistency",
    }  # fmt: skip
    assert "bg_alignment" in salmon["missing_parts"] and len(salmon["missing_parts"]) == 6


class Spells:
    """Gives log-probabilities of −1 per byte, and of `rates` per byte to texts with these words."""

    heads, class_names = ("full",), tuple(LAYOUT.class_names)

    def __init__(self, rates):
        self.rates = rates

    def __call__(self, sequences):
        for number, sequence in enumerate(sequences):
            text = ByteTokenizer().decode(sequence.ids[sequence.first : sequence.last])
            rate = next((r for word, r in self.rates.items() if word in text), 1.0)
            nll = np.zeros(len(self.class_names))
            nll[0] = rate * len(text)
            yield [number], {"full": [TokenSums(nll, np.full(len(nll), len(text)))]}


def test_hellaswag_divides_by_characters_without_the_space(model, tmp_path):
    # Bytes of an ending with its space, per character: "Stop." 6/5, "Sleep for a day." 17/16. With equal rates the
    # longest ending has the best score, with its true length in tokens all would be equal.
    def accuracy(rates):
        context = open_context(model, tmp_path / str(len(rates)), "hellaswag", Spells(rates))
        return scores_of(context)["accuracy"]["full"]["all"]["all"]["accuracy"]

    assert accuracy({}) == 0.0
    # Right: "says two." (index 2) and "Stop." (index 0).
    assert accuracy({"two": 0.1}) == 0.5
    assert accuracy({"two": 0.1, "Stop": 0.1}) == 1.0


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_lengths_suit_the_kernels_of_accelerators(model, platform):
    likelihood = ModelLikelihood(dataclasses.replace(model, placement=OneDevice(platform)), 2)
    lengths = {_bucket(length, likelihood._unit) for length in range(1, 5000, 7)}
    assert all(length % 128 == 0 for length in lengths) and len(lengths) < 20
    assert [_bucket(length, 1) for length in (1, 64, 65, 97, 129, 400)] == [
        64, 64, 80, 112, 160, 448,
    ]  # fmt: skip
    assert all(length <= _bucket(length, 1) <= 1.26 * length for length in range(64, 5000))


def test_scores_do_not_depend_on_the_compute_dtype_of_the_run(model, sequences, expected):
    narrow = dataclasses.replace(model, model=make_functions(compute_dtype="bfloat16"))
    assert_same(sums_of(ModelLikelihood(narrow, 2, ("full", "legal"), 2048), sequences), expected)


def test_models_without_text_or_audio_are_refused(model, tmp_path):
    for compositions, task, message in (
        (["S"], "twuggy", "twuggy needs a model that was trained with text"),
        (["S+A", "S"], "hellaswag", "hellaswag needs a model that was trained with text"),
        (["text"], "salmon", "salmon needs a model that was trained with audio"),
    ):
        sources = {f"s{n}": {"composition": c, "codebooks": 0} for n, c in enumerate(compositions)}
        metadata = {**model.metadata, "data": {"sequence_length": 512, "sources": sources}}
        changed = dataclasses.replace(model, metadata=metadata)
        with pytest.raises(UserError, match=message):
            scores_of(open_context(changed, tmp_path / task, task, Knows()))


def test_hellaswag_is_cleaned_as_in_the_harness(tmp_path):
    first, second = read_hellaswag(files.write_hellaswag(tmp_path))
    prompt, endings, label = first.content
    assert prompt == "Counting: A man counts. He" and label == 2
    assert endings == ["says six. and so on.", "sings.", "says two.", "leaves now."]
    assert second.content[0] == "Turning: Turn left then go."
    assert clean("  a [title] b [x] c  ") == "a. b c"


def test_sequences_are_legal_and_only_their_content_is_scored(model):
    codes = np.array([[1, 2], [3, 4], [5, 0]])
    audio = audio_sequence(codes, LAYOUT, 2)
    text = text_sequence(ByteTokenizer().encode("go on"), LAYOUT)
    rules_ = grammar(LAYOUT, 2)
    for sequence, kind in ((audio, LAYOUT.audio_base), (text, 0)):
        assert rules_.run(sequence.ids) >= 0
        scored = sequence.ids[sequence.first : sequence.last]
        assert ((scored >= LAYOUT.audio_base) == bool(kind)).all()
    np.testing.assert_array_equal(
        LAYOUT.ids_to_codes(audio.ids[audio.first : audio.last], 2), codes
    )
    assert ByteTokenizer().decode(text.ids[text.first : text.last]) == "go on"


@pytest.fixture(scope="module")
def sequences():
    rng, found = np.random.default_rng(0), []
    for number in range(13):
        frames = rng.integers(0, 6, (int(rng.integers(1, 60)), 2))
        found.append(audio_sequence(frames, LAYOUT, 2))
        found.append(text_sequence(rng.integers(97, 122, 3 + 4 * number), LAYOUT))
    ids = np.concatenate([[LAYOUT.bos], rng.integers(97, 122, 30)]).astype(np.int32)
    return [*found, ScoredSequence(ids, 12, 31)]


def sums_of(likelihood, sequences):
    found = {}
    for indices, by_head in likelihood(sequences):
        for at, index in enumerate(indices):
            assert index not in found
            found[index] = {head: sums[at] for head, sums in by_head.items()}
    return [found[number] for number in range(len(sequences))]


def assert_same(left, right, tolerance=1e-5):
    for one, other in zip(left, right, strict=True):
        for head in one:
            np.testing.assert_allclose(one[head].nll, other[head].nll, rtol=tolerance, atol=1e-4)
            np.testing.assert_array_equal(one[head].tokens, other[head].tokens)


@pytest.fixture(scope="module")
def expected(model, sequences):
    return sums_of(ModelLikelihood(model, 2, ("full", "legal"), 2048), sequences)


def test_log_probabilities_are_those_of_the_plain_forward_pass(model, sequences, expected):
    decoder, rules_ = model.model.bind(model.params), grammar(LAYOUT, 2)
    for sequence, found in list(zip(sequences, expected, strict=True))[::4]:
        ids = sequence.ids
        positions = np.arange(len(ids))[None]
        logits = np.asarray(
            decoder.logits(decoder(ids[None], np.ones_like(ids)[None], positions))[0], np.float64
        )
        total = {"full": 0.0, "legal": 0.0}
        for at in range(sequence.first, sequence.last):
            row = logits[at - 1]
            legal = np.where(rules_.legal(rules_.run(ids[:at])), row, -np.inf)
            total["full"] += row[ids[at]] - np.logaddexp.reduce(row)
            total["legal"] += row[ids[at]] - np.logaddexp.reduce(legal)
        for head, value in total.items():
            assert -found[head].nll.sum() == pytest.approx(value, rel=1e-5)
            assert found[head].tokens.sum() == sequence.last - sequence.first


def test_scores_do_not_depend_on_batch_size_order_and_padding(model, sequences, expected):
    small = ModelLikelihood(model, 2, ("full", "legal"), 64)
    assert_same(sums_of(small, sequences), expected)
    order = np.random.default_rng(1).permutation(len(sequences))
    shuffled = sums_of(
        ModelLikelihood(model, 2, ("full", "legal"), 2048), [sequences[n] for n in order]
    )
    assert_same([shuffled[int(np.flatnonzero(order == n)[0])] for n in range(len(order))], expected)


@pytest.mark.parametrize("axes", [{"data": 4}, {"data": 2, "tensor": 2}], ids=str)
def test_scores_do_not_depend_on_the_mesh(model, functions, sequences, expected, axes):
    mesh = make_mesh(axes, jax.devices()[:4])
    placed = jax.tree.map(
        lambda leaf, names: jax.device_put(leaf, rules.sharding(mesh, names, leaf.shape)),
        model.params,
        functions.axes,
    )
    sharded = dataclasses.replace(model, params=placed, placement=OnMesh(mesh))
    found = sums_of(ModelLikelihood(sharded, 2, ("full", "legal"), 2048), sequences)
    assert_same(found, expected)


def test_a_model_trained_with_the_legal_head_has_both_columns(model, tmp_path):
    legal = dataclasses.replace(model, model=make_functions(head="legal"))
    assert set(scores_of(open_context(legal, tmp_path, "swuggy"))["accuracy"]) == {"full", "legal"}
    assert set(scores_of(open_context(model, tmp_path, "swuggy"))["accuracy"]) == {"full"}
    one = open_context(model, tmp_path, "swuggy", head="legal")
    assert set(scores_of(one)["accuracy"]) == {"legal"}


def test_results_repeat_and_the_table_names_the_failed_items(model, tmp_path):
    context = open_context(model, tmp_path, "swuggy")
    (tmp_path / "swuggy/lexical/dev/twaa.wav").unlink()
    (tmp_path / "swuggy/lexical/dev/sixb.wav").write_bytes(b"no sound")
    scores = scores_of(context)
    assert (scores["items"], scores["scored"]) == (6, 4)
    assert [row["name"] for row in scores["failed"]] == ["0/a", "2/b"]
    assert "twaa.wav" in scores["failed"][0]["reason"]
    again = open_context(model, tmp_path / "again", "swuggy")
    for name in ("twaa.wav", "sixb.wav"):
        (tmp_path / "again/swuggy/lexical/dev" / name).unlink()
    repeated = scores_of(again)
    assert repeated["accuracy"] == scores["accuracy"]
    printed = text_report({"step": 7, "tasks": ["swuggy"], "swuggy": scores})
    assert "swuggy: 4 of 6 items scored by mean log-probability per token" in printed
    assert "not scored: 0/a" in printed and "full ids" in printed


def test_irregular_pairs_are_named_and_the_others_scored(model, tmp_path):
    context = open_context(model, tmp_path, "swuggy", Knows())
    break_pair(tmp_path / "swuggy")
    path = tmp_path / "swuggy/lexical/dev/gold.csv"
    path.write_text(path.read_text() + "sixb,2,b,3,six,x,1,1\n")
    scores = scores_of(context)
    reasons = {row["name"]: row["reason"] for row in scores["failed"]}
    assert reasons.keys() == {"0/a", "2/b"} and scores["scored"] == 4
    assert "1 right and 0 wrong rows" in reasons["0/a"]
    assert "2 right and 1 wrong rows" in reasons["2/b"]


def test_a_limit_takes_items_of_all_parts(model, tmp_path):
    salmon = scores_of(open_context(model, tmp_path, "salmon", Knows(), limit=3))
    parts = salmon["accuracy"]["full"]["all"]
    assert {name: row["items"] for name, row in parts.items()} == {
        "all": 3, "gender_consistency": 2, "rir_consistency": 1,
    }  # fmt: skip
    assert scores_of(open_context(model, tmp_path, "swuggy", limit=2))["items"] == 2
    assert scores_of(open_context(model, tmp_path, "swuggy", limit=0))["items"] == 6


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def break_column(folder):
    edit(folder / "lexical/dev/gold.csv", "voice", "speaker")


def break_label(folder):
    edit(folder / "lexical/dev/gold.csv", "twaa,0,a,3,twa,x,1,0", "twaa,0,a,3,twa,x,1,no")


def break_pair(folder):
    edit(folder / "lexical/dev/gold.csv", "twaa,0,a,3,twa,x,1,0\n", "")


def remove(folder):
    shutil.rmtree(folder / "lexical")


@pytest.mark.parametrize(
    ("task", "damage", "message"),
    [
        ("swuggy", break_column, "gold.csv has no column 'voice'"),
        ("swuggy", break_label, "gold.csv:3: correct is 'no'"),
        ("twuggy", remove, "has no lexical/dev/gold.csv"),
        (
            "sblimp",
            lambda f: (f / "syntactic/dev/gold.csv").write_bytes(b"id,\xff\n"),
            "gold.csv cannot be read as UTF-8 text",
        ),
        (
            "hellaswag",
            lambda f: (f / "hellaswag_val.jsonl").write_bytes(b"\xff\n"),
            "hellaswag_val.jsonl cannot be read as UTF-8 text",
        ),
        (
            "hellaswag",
            lambda f: edit(f / "hellaswag_val.jsonl", '"endings"', '"ends"'),
            "hellaswag_val.jsonl:1 is not an item of HellaSwag: KeyError: 'endings'",
        ),
        (
            "hellaswag",
            lambda f: edit(f / "hellaswag_val.jsonl", '"label": 2', '"label": 4'),
            "label 4 is not one of 4 endings",
        ),
        (
            "salmon",
            lambda f: (f / "rir_consistency/sample_1_1.wav").unlink(),
            "sample 1 has 1 recordings, not 2",
        ),
        (
            "salmon",
            lambda f: (f / "rir_consistency/sample_1_1.wav").rename(f / "rir_consistency/x.wav"),
            "the name is not sample_NUMBER",
        ),
    ],
)
def test_damaged_benchmarks_are_refused(model, tmp_path, task, damage, message):
    context = open_context(model, tmp_path, task, Knows())
    damage(tmp_path / task)
    with pytest.raises(UserError, match=message):
        scores_of(context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("swuggy",)}, "swuggy needs its data: pass --data=swuggy=DIR"),
        ({"tasks": ("swuggy",), "benchmarks": {"swuggy": "nowhere"}}, "nowhere is not a folder"),
        ({"tasks": ("loss",), "benchmarks": {"swuggy": "x"}}, "swuggy is not one of the tasks"),
        ({"tasks": ("swugy",)}, "did you mean swuggy"),
        ({"seed": -1}, "seed -1 must be from 0 to"),
        ({"shots": -1}, "shots -1 must be at least 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        EvaluationOptions(**options)


def test_a_stopped_command_scores_no_item_of_an_earlier_task_again(model, tmp_path, monkeypatch):
    files.write_zerospeech(tmp_path / "zr")
    calls, saved = [], []

    class Counts(Knows):
        def __call__(self, sequences):
            calls.append(len(sequences))
            return super().__call__(sequences)

    def start(context, workdir, options):
        vars(context).update(
            _workdir=workdir, options=options, opened=[], speech_model=model, model=model,
            likelihood=Counts(),
        )  # fmt: skip

    monkeypatch.setattr(EvaluationContext, "__init__", start)
    options = EvaluationOptions(
        tasks=("swuggy", "sblimp"), partial=tmp_path / "partial",
        benchmarks=dict.fromkeys(("swuggy", "sblimp"), str(tmp_path / "zr")),
    )  # fmt: skip
    gold = tmp_path / "zr/syntactic/dev/gold.csv"
    gold.rename(gold.with_suffix(".away"))
    with pytest.raises(UserError, match="has no syntactic/dev/gold"):
        evaluate("run", options, lambda result: saved.append(list(result["tasks"])))
    assert saved == [["swuggy"]] and calls == [12]
    gold.with_suffix(".away").rename(gold)
    result = evaluate("run", options)
    assert calls == [12, 6] and result["tasks"] == ["swuggy", "sblimp"]
    assert not (tmp_path / "partial").exists()


def test_suites_name_registered_tasks():
    for tasks in SUITES.values():
        assert all(task in EVALUATORS for task in tasks)
