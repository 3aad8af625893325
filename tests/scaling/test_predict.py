"""`soda scaling predict`: optima under the true FLOPs, the preset of the paper, intervals."""

import dataclasses
import json

import numpy as np
import pytest
from laws import LAWS, planted, rows_of, write

from soda_jax import cli
from soda_jax.errors import UserError
from soda_jax.scaling.fit import fit_table, to_text
from soda_jax.scaling.flop_count import model_flops
from soda_jax.scaling.grid import plan_runs
from soda_jax.scaling.predict import read_fit
from soda_jax.scaling.presets import PRESETS
from soda_jax.scaling.rules import BUDGETS, soda
from soda_jax.scaling.shape import Shape, legal_head_rows
from soda_jax.scaling.table import read_runs
from soda_jax.tokens.vocabulary import VocabularyLayout

LAW = LAWS[0]


def fitted(tmp_path, rows, draws=0):
    table = write(tmp_path / "runs.csv", rows)
    file = tmp_path / "fit.json"
    file.write_text(to_text(fit_table(read_runs(table), draws)))
    return str(file)


@pytest.fixture(scope="module")
def study():
    """The rows of the paper's plan with losses of a planted law of params_total."""
    rows = [run.row() for run in plan_runs(soda(), BUDGETS, 144_644, 4096).runs]
    for row in rows:
        row["loss"] = float(LAW.loss(row["params_total"], row["tokens"]))
    return rows


@pytest.fixture(scope="module")
def planted_fit(tmp_path_factory):
    """A folder with fit.json of a planted law."""
    folder = tmp_path_factory.mktemp("planted")
    fitted(folder, rows_of(planted(LAW)))
    return folder


@pytest.mark.parametrize(("budget", "ratio"), [(1e20, 13), (1e23, 58)])
def test_the_preset_gives_the_papers_tokens_per_parameter(budget, ratio):
    assert PRESETS["soda"].optimum(budget)["tokens_per_parameter"] == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize(("params", "factor"), [(135e6, 940), (600e6, 90), (1.7e9, 18), (4e9, 4.5)])
def test_the_preset_gives_the_papers_over_training(params, factor):
    found = PRESETS["soda"].model(params, 500e9)["over_training"]
    assert found == pytest.approx(factor, rel=0.1)


def test_the_preset_states_which_parameters_it_counts(capsys):
    assert cli.main(["scaling", "predict", "--preset=soda", "--budget=1e20"]) == 0
    assert "nominal size" in capsys.readouterr().out


def test_the_flops_of_a_size_are_those_of_the_model():
    flops = model_flops(soda(), 144_644, 4096)
    shape = soda().shape(768)
    expected = 3 * shape.forward_flops_per_token(144_644, 4096)
    params = float(shape.parameters(144_644))
    assert flops(np.array(params)) == pytest.approx(expected)
    assert flops(np.array(params)) != pytest.approx(6 * params, rel=0.1)


def test_the_optimum_is_the_lowest_loss_that_the_budget_allows(tmp_path, study):
    law = read_fit(fitted(tmp_path, study), soda(), None, None)
    assert "144,644 ids" in law.note
    best = law.optimum(1e21)
    flops = model_flops(soda(), 144_644, 4096)
    assert best["tokens"] * flops(np.array(best["params"])) == pytest.approx(1e21)
    sizes = best["params"] * np.geomspace(0.3, 3, 61)
    assert best["loss"] <= LAW.loss(sizes, 1e21 / flops(sizes)).min() * (1 + 1e-6)


def test_the_budget_of_a_loss_reaches_it(tmp_path, study):
    law = read_fit(fitted(tmp_path, study), soda(), None, None)
    loss = law.optimum(3e21)["loss"]
    assert law.budget_for(loss)["budget"] == pytest.approx(3e21, rel=0.01)


def test_an_optimal_model_is_not_over_trained(tmp_path, study):
    law = read_fit(fitted(tmp_path, study), soda(), None, None)
    best = law.optimum(1e21)
    found = law.model(best["params"], 3 * best["tokens"])
    assert found["over_training"] == pytest.approx(3, rel=0.05)
    assert found["budget"] == pytest.approx(3e21, rel=1e-6)


def test_other_tables_use_their_own_flops_and_have_intervals(tmp_path, capsys):
    runs = planted(LAW, noise=0.003)
    tokens = runs.tokens * 1.2  # C = 5ND
    loss = runs.loss + LAW.loss(runs.params, tokens) - LAW.loss(runs.params, runs.tokens)
    runs = dataclasses.replace(runs, tokens=tokens, loss=loss)
    rows = rows_of(runs, **{"loss/text": (runs.loss / 2).tolist()})
    file, out = fitted(tmp_path, rows, draws=40), tmp_path / "predictions.json"
    options = ["--budget=1e21", "--params=1e9", "--tokens=1e11", f"--out={out}"]
    assert cli.main(["scaling", "predict", file, *options]) == 0
    optimum, model = json.loads(out.read_text())["predictions"]
    expected, _ = LAW.optimum(1e21 / 5)
    low, high = optimum["intervals"]["params"]
    assert low < expected < high and low < optimum["params"] < high
    assert model["classes"]["text"] == pytest.approx(model["loss"] / 2, rel=0.01)
    assert "FLOPs as in the table" in capsys.readouterr().out


def test_intervals_of_budget_and_over_training_contain_the_truth(tmp_path):
    law = read_fit(
        fitted(tmp_path, rows_of(planted(LAW, noise=0.003)), draws=60), soda(), None, None
    )
    params, tokens = (float(x) for x in LAW.optimum(3e19 / 6))
    found = law.budget_for(float(LAW.loss(params, tokens)))
    low, high = found["intervals"]["budget"]
    assert low < 3e19 < high < 1.2 * low and low < found["budget"] < high
    assert found["intervals"]["loss"] is None  # it is given
    found = law.model(params, 4 * tokens)
    low, high = found["intervals"]["over_training"]
    assert low < 4 < high and low < found["over_training"] < high


def test_optima_of_classes_are_predicted(tmp_path, capsys):
    runs, text = planted(LAW, noise=0.002), LAWS[1]
    losses = text.loss(runs.params, runs.tokens)
    file = fitted(tmp_path, rows_of(runs, **{"loss/text": losses.tolist()}), draws=30)
    found = read_fit(file, soda(), None, None).optimum(1e20)
    own, expected = found["class_optima"]["text"], text.optimum(1e20 / 6)
    assert own["params"] == pytest.approx(float(expected[0]), rel=0.01)
    assert own["tokens"] == pytest.approx(float(expected[1]), rel=0.01)
    assert own["loss"] < found["classes"]["text"] and own["intervals"]["params"] is not None
    there = text.loss(found["params"], found["tokens"])
    assert found["classes"]["text"] == pytest.approx(float(there), rel=1e-4)
    assert cli.main(["scaling", "predict", file, "--budget=1e20"]) == 0
    assert "its own optimum" in capsys.readouterr().out


def test_small_models_cost_less_than_large_ones():
    flops = model_flops(soda(), 2310, 256)
    sizes = np.geomspace(*flops.sizes, 400)[1:-1]
    assert flops.sizes[0] < 4e5 and (np.diff(flops(sizes)) > 0).all()
    assert np.isnan(flops(np.array([1e4, 1e14]))).all()


def test_a_legal_head_moves_the_optimum(tmp_path, study, capsys):
    file, out = fitted(tmp_path, study, draws=10), tmp_path / "predictions.json"
    options = ["--budget=3e18,1e21", "--head=legal", f"--out={out}"]
    assert cli.main(["scaling", "predict", file, *options]) == 0
    small, large = json.loads(out.read_text())["predictions"]
    rows = legal_head_rows(VocabularyLayout.soda(), 0.1)
    for row in (small, large):
        budget = row["budget"]
        for head_rows, one in ((rows, row), (None, row["full_head"])):
            flops = model_flops(soda(), 144_644, 4096, "params_total", head_rows)
            sizes = one["params"] * np.geomspace(0.3, 3, 61)
            assert one["loss"] <= LAW.loss(sizes, budget / flops(sizes)).min() * (1 + 1e-5)
        low, high = row["intervals"]["tokens_ratio"]
        assert low <= row["tokens_ratio"] * 1.001 and row["tokens_ratio"] <= high * 1.001
        assert row["loss"] < row["full_head"]["loss"] and row["full_budget_ratio"] > 1
    # The head takes a larger part of the FLOPs of small models.
    assert small["full_budget_ratio"] > large["full_budget_ratio"]
    assert "relative to it: N* ×" in capsys.readouterr().out
    assert (
        cli.main(
            ["scaling", "predict", file, "--budget=3e18", "--vocabulary=50000", "--head=legal"]
        )
        == 2
    )
    assert "give --head_rows" in capsys.readouterr().err


def test_counts_and_rules_that_are_not_those_of_the_table_are_not_used_silently(tmp_path, study):
    own = [{**row, "params": row["params_one_head"]} for row in study]
    law = read_fit(fitted(tmp_path, own), soda(), None, None)
    assert "FLOPs as in the table" in law.note and law.study is None
    file = fitted(tmp_path, study)
    assert "warning" not in read_fit(file, soda(), None, None).note
    narrow = dataclasses.replace(soda(), shape=lambda width: Shape(width, 40, 1, 64, width))
    assert "check --rules" in read_fit(file, narrow, None, None).note


def test_a_surface_without_an_optimum_has_none(tmp_path):
    file = fitted(tmp_path, rows_of(planted(LAW)))
    law = read_fit(file, soda(), None, None)
    flat = dataclasses.replace(law, surface=dataclasses.replace(law.surface, A=0.0))
    with pytest.raises(UserError, match=r"no minimum at 1e\+20 FLOPs"):
        flat.optimum(1e20)
    assert flat.model(1e8, 1e9)["over_training"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["fit.json", "--budget=1e300"], "no minimum at 1e+300 FLOPs"),
        (["fit.json", "--budget=1e-5"], "no minimum at 1e-05 FLOPs"),
        (["fit.json", "--params=1e300", "--tokens=1e300"], "is out of range"),
        (["fit.json", "--budget=1e20", "--head=legal"], "needs the FLOPs of models"),
        (["fit.json", "--budget=1e20", "--head_rows=9"], "needs --head=legal"),
        (["--preset=soda", "--params=1e300", "--tokens=1"], "is out of range"),
        (["--preset=soda", "--budget=1e20", "--head=legal"], "does not have"),
        ([], "give the JSON of a fit"),
        (["--preset=sodo", "--budget=1e20"], "use soda"),
        (["--preset=soda"], "give --budget"),
        (["--preset=soda", "--params=1e9"], "belong together"),
        (["--preset=soda", "--target_loss=2"], "a preset has no loss"),
        (["--preset=soda", "--budget=-1"], "above 0"),
        (["nowhere.json", "--budget=1e20"], "nowhere.json is not a fit"),
        (["fit.json", "--target_loss=1"], "irreducible loss is 1.86"),
    ],
)
def test_bad_options_are_named(planted_fit, monkeypatch, capsys, options, message):
    monkeypatch.chdir(planted_fit)
    assert cli.main(["scaling", "predict", *options]) == 2
    assert message in capsys.readouterr().err
