"""`soda scaling fit`: the output, classes, parameter counts, intervals and bad tables."""

import dataclasses
import json

import numpy as np
import pytest
from laws import LAWS, planted, rows_of, write

from soda_jax import cli
from soda_jax.errors import UserError
from soda_jax.scaling.bias import flops_law
from soda_jax.scaling.bootstrap import draw_weights
from soda_jax.scaling.fit import fit_loss, fit_table, to_text
from soda_jax.scaling.grid import plan_runs
from soda_jax.scaling.rules import BUDGETS, soda
from soda_jax.scaling.surface import Surface
from soda_jax.scaling.table import read_runs

LAW = LAWS[0]
NAMES = ("alpha", "beta", "E", "A", "B")
NONE = np.empty((0, 63))  # no draws


def command(table, *options):
    return cli.main(["scaling", "fit", table, "--bootstrap=0", *options])


def test_the_command_writes_three_fits(tmp_path, capsys):
    table = write(tmp_path / "runs.csv", rows_of(planted(LAW), experiment="mine"))
    out = tmp_path / "fit.json"
    options = ("--select", "experiment=mine", f"--out={out}")
    assert cli.main(["scaling", "fit", table, *options, "--bootstrap=20"]) == 0
    found = json.loads(out.read_text())
    assert found["n"] == 63
    a, b = LAW.exponents()
    assert found["approach2"]["a"] == pytest.approx(a, abs=0.01)
    assert found["approach2"]["b"] == pytest.approx(b, abs=0.01)
    for method in ("variable_projection", "approach3"):
        for name in NAMES:
            assert found[method][name] == pytest.approx(getattr(LAW, name), rel=0.01)
        assert found[method]["huber"] < 1e-9
    assert len(found["draws"]["alpha"]) == 20 and found["intervals"]["seed"] == 0
    assert found["table"]["file"] == "runs.csv" and len(found["table"]["sha256"]) == 64
    printed = capsys.readouterr().out
    assert "variable_projection" in printed and "bias of approach 2" in printed
    assert out.read_text().count("\n") < 300  # lists of numbers are on one line


def test_huber_is_that_of_the_residuals_in_nats():
    runs = planted(LAW, noise=0.01)
    found = fit_loss(runs, NONE)
    for method in ("variable_projection", "approach3"):
        one = found[method]
        fitted = one["E"] + one["A"] * (runs.params / 1e6) ** -one["alpha"]
        fitted += one["B"] * (runs.tokens / 1e9) ** -one["beta"]
        size = np.abs(runs.loss - fitted)
        expected = np.where(size <= 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).mean()
        assert one["huber"] == pytest.approx(expected)
    assert found["variable_projection"]["huber"] <= found["approach3"]["huber"]


def test_columns_with_other_names_and_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"C": r["budget"], "N": r["params"], "D": r["tokens"], "nll": r["loss"]}
        for r in rows_of(planted(LAW))
    ]
    csv_file = write(tmp_path / "runs.csv", rows)
    parquet = str(tmp_path / "runs.parquet")
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    columns = {"budget": "C", "params": "N", "tokens": "D", "loss": "nll"}
    first, second = read_runs(csv_file, {}, columns), read_runs(parquet, {}, columns)
    np.testing.assert_array_equal(first.loss, second.loss)
    np.testing.assert_array_equal(first.params, planted(LAW).params)
    with pytest.raises(UserError, match="no column budget or params or tokens or loss, but C, N"):
        read_runs(csv_file)
    with pytest.raises(UserError, match="has no such column"):
        read_runs(csv_file, {}, {"loss": "nlll"})


@pytest.mark.parametrize("missing", ["budget", "params", "tokens"])
def test_a_missing_count_follows_from_the_others(tmp_path, missing):
    rows = [{k: v for k, v in r.items() if k != missing} for r in rows_of(planted(LAW))]
    runs = read_runs(write(tmp_path / "runs.csv", rows))
    np.testing.assert_allclose(getattr(runs, missing), getattr(planted(LAW), missing), rtol=1e-9)
    assert runs.notes and runs.notes[0].startswith(f"{missing} = ")
    assert len(np.unique(runs.budget)) == 7


def test_classes_and_parameter_counts_have_fits_of_their_own(tmp_path):
    runs, text = planted(LAW), LAWS[1]
    losses = text.loss(runs.params, runs.tokens).tolist()
    rows = rows_of(
        runs,
        **{"loss/text": [*losses[:-1], ""], "loss/marker": [""] * len(runs)},
        params_one_head=(runs.params / 2).tolist(),
    )
    found = fit_table(read_runs(write(tmp_path / "runs.csv", rows)), draws=0)
    assert found["classes"]["text"]["n"] == 62
    assert found["classes"]["text"]["variable_projection"]["alpha"] == pytest.approx(0.34, rel=0.01)
    assert "1 runs have no loss/text" in found["classes"]["text"]["warnings"]
    assert "fewer than 6 runs" in found["classes"]["marker"]["reason"]
    half = found["parameter_counts"]["params_one_head"]["variable_projection"]
    assert half["A"] == pytest.approx(LAW.A * 2**-0.36, rel=0.01)


def test_too_few_runs_in_a_budget_leave_the_other_fits(tmp_path):
    rows = rows_of(planted(LAW))
    found = fit_table(read_runs(write(tmp_path / "runs.csv", rows[:2] + rows[9:])), draws=5)
    assert found["approach2"] is None and "has 2 runs" in found["approach2_reason"]
    assert found["variable_projection"]["alpha"] == pytest.approx(LAW.alpha, rel=0.01)
    assert found["approach3"]["alpha"] == pytest.approx(LAW.alpha, rel=0.01)
    assert found["intervals"]["approach2"] == {"a": None, "b": None}


def test_bad_rows_are_set_aside_by_name(tmp_path):
    rows = rows_of(planted(LAW))
    rows[3]["loss"] = "nan"
    rows[5]["loss"] = ""
    rows[7]["tokens"] = -1
    rows[8]["budget"] *= 7
    rows.append(rows[20])
    runs = read_runs(write(tmp_path / "runs.csv", rows))
    assert len(runs) == 63 - 4
    for start, line in zip(
        ("row 4: loss = nan", "row 6: loss = ", "row 8: tokens = -1", "row 9: budget = 7e+18 contra",
         "row 64: the same run as row 21"),
        runs.set_aside, strict=True,
    ):  # fmt: skip
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.append({**rows[0], "loss": 3.0}), "rows 1 and 64 are the same run"),
        (lambda rows: rows[4].update(vocabulary=512), "mixes 2 values of vocabulary"),
        (lambda rows: rows[4].update(normalizer="legal"), "mixes 2 values of normalizer"),
        (lambda rows: [r.update(params=r["params"] / 1e6) for r in rows], "6 · params · tokens in"),
        (lambda rows: [r.update(loss="x") for r in rows], "no usable row"),
        (lambda rows: [r.pop("loss") for r in rows], "no column loss"),
        (lambda rows: rows.clear() or rows.append({}), "has no rows"),
        (lambda rows: rows.__delitem__(slice(5, None)), "5 usable runs"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, capsys, change, message):
    rows = rows_of(planted(LAW), vocabulary=144_644, normalizer="full")
    change(rows)
    table = write(tmp_path / "runs.csv", rows)
    assert command(table) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "runs.csv" in error


def planned(vocabulary, count="params_total"):
    plan = plan_runs(soda(), BUDGETS, vocabulary, 4096)
    rows = [run.row() for run in plan.runs]
    for row in rows:
        row["loss"] = float(LAW.loss(row[count], row["tokens"]))
    return rows


@pytest.mark.parametrize("count", ["params_total", "params_one_head", "params_non_embedding"])
def test_a_plan_with_losses_can_be_fitted_for_every_parameter_count(tmp_path, count):
    table = write(tmp_path / "runs.csv", planned(144_644, count))
    runs = read_runs(table, columns={"params": count})
    assert len(runs) == 66 and not runs.set_aside and len(runs.counts) == 2
    assert runs.source["vocabulary"] == 144_644 and runs.source["length"] == 4096
    found = fit_loss(runs, NONE)["variable_projection"]
    assert [found[name] for name in NAMES] == pytest.approx(
        [getattr(LAW, name) for name in NAMES], rel=0.01
    )


def test_plans_of_two_vocabularies_are_not_mixed(tmp_path):
    table = write(tmp_path / "runs.csv", planned(144_644) + planned(50_000))
    with pytest.raises(UserError, match="mixes runs whose vocabulary is 50000, 144644"):
        read_runs(table)


def test_repeated_runs_can_be_kept(tmp_path):
    rows = rows_of(planted(LAW))
    rows.append({**rows[0], "loss": rows[0]["loss"] + 0.01})
    table = write(tmp_path / "runs.csv", rows)
    assert len(read_runs(table, keep_repeats=True)) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--select", "experiment"], "must be COLUMN=VALUE"),
        (["--select", "x=1"], "has columns budget"),
        (["--select", "budget=7"], "no such row"),
        (["--seed=-1"], "at least 0"),
    ],
)
def test_bad_options_are_named(tmp_path, capsys, options, message):
    table = write(tmp_path / "runs.csv", rows_of(planted(LAW)))
    assert command(table, *options) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_an_error(capsys):
    assert command("nowhere.csv") == 2
    assert "nowhere.csv cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: {"loss": 8 - runs.loss}, "A = 0"),
        (lambda runs: {"loss": np.full(len(runs), 3.0)}, "B = 0"),
        (lambda runs: {"tokens": np.full(len(runs), 1e9)}, "has 1 size; budget"),
        (lambda runs: {"budget": np.full(len(runs), 1e18)}, "there is one budget"),
    ],
)
def test_losses_that_determine_no_law_give_warnings_and_valid_json(change, message):
    runs = planted(LAW, noise=0.003)
    found = fit_table(dataclasses.replace(runs, **change(runs)), draws=5)
    assert any(message in line for line in found["warnings"])
    json.loads(to_text(found), parse_constant=pytest.fail)  # no NaN


def test_equal_seeds_give_equal_intervals():
    runs = planted(LAW, noise=0.005)
    first, again, other = (
        fit_loss(runs, draw_weights(20, len(runs), seed), seed)["intervals"] for seed in (1, 1, 2)
    )
    assert first == again and first != other
    low, high = first["variable_projection"]["alpha"]
    assert 0 < high - low < 0.3 and first["approach2"]["a"][0] < first["approach2"]["a"][1]


def test_a_left_out_budget_is_predicted():
    errors = fit_loss(planted(LAW, noise=0.002), NONE)["left_out_error"]
    assert len(errors) == 7
    assert all(0 < one["mean_absolute"] < 0.005 for one in errors.values())


def test_cells_that_are_not_used_are_named(tmp_path):
    runs = planted(LAW)
    halves = [0.0, *(runs.params[1:] / 2).tolist()]
    text = [*runs.loss[:-2].tolist(), "", -1]
    rows = rows_of(runs, **{"loss/text": text}, params_one_head=halves)
    found = read_runs(write(tmp_path / "runs.csv", rows))
    assert "params_one_head" not in found.counts and not found.set_aside
    assert "params_one_head is 0.0 in row 1, so it is not fitted" in found.notes
    assert any(line.startswith("loss/text is empty in row 62 and") for line in found.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("budget,params,tokens,loss", "budget,params,loss,loss"),
            "two columns",
        ),
        (lambda text: text + "1,000,1e8,1e9,3\n", "row 64 has 5 cells, but there are 4 columns"),
    ],
)
def test_shifted_and_repeated_columns_are_refused(tmp_path, change, message):
    table = tmp_path / "runs.csv"
    write(table, rows_of(planted(LAW)))
    table.write_text(change(table.read_text()))
    with pytest.raises(UserError, match=message):
        read_runs(str(table))


def test_achieved_budgets_of_a_curve_leave_its_flops_unbiased(tmp_path):
    runs = planted(LAW)
    factor = np.random.default_rng(0).uniform(1, 1.045, len(runs))
    tokens = runs.tokens * factor
    loss = LAW.loss(runs.params, tokens)
    runs = dataclasses.replace(runs, budget=runs.budget * factor, tokens=tokens, loss=loss)
    found = read_runs(write(tmp_path / "runs.csv", rows_of(runs)))
    assert len(np.unique(found.budget)) == 7
    assert found.notes == ("63 budgets that differ by less than 5% are 7 curves",)
    constant, power = flops_law(found)
    assert constant * 1e8**power == pytest.approx(6e8, rel=2e-3)


def test_a_row_without_sizes_does_not_hide_another_vocabulary(tmp_path):
    rows = planned(144_644) + planned(50_000)
    rows[3]["width"] = ""
    with pytest.raises(UserError, match="mixes runs whose vocabulary is 50000, 144644"):
        read_runs(write(tmp_path / "runs.csv", rows))


def test_an_exact_copy_of_a_repeat_is_set_aside(tmp_path):
    rows = rows_of(planted(LAW))
    other = {**rows[0], "loss": rows[0]["loss"] + 0.01}
    wrong = {**rows[5], "budget": 7e18}
    runs = read_runs(
        write(tmp_path / "runs.csv", [*rows, other, other, wrong, wrong]), keep_repeats=True
    )
    assert len(runs) == 64
    assert [line.split(":")[0] for line in runs.set_aside] == ["row 66", "row 67", "row 65"]


def test_classes_have_optima_whose_intervals_contain_the_planted_ones(tmp_path, capsys):
    runs = planted(LAW, noise=0.002)
    laws = {"text": Surface(0.36, 0.40, 0.4, 2.0, 0.3), "semantic": LAW}
    random = np.random.default_rng(1)
    losses = {
        f"loss/{name}": (
            law.loss(runs.params, runs.tokens) + 0.002 * random.standard_normal(len(runs))
        ).tolist()
        for name, law in laws.items()
    }
    losses["loss/same"] = losses["loss/semantic"]
    table, out = write(tmp_path / "runs.csv", rows_of(runs, **losses)), tmp_path / "fit.json"
    assert cli.main(["scaling", "fit", table, "--bootstrap=100", f"--out={out}"]) == 0
    fit = json.loads(out.read_text())
    for name, law in laws.items():
        assert [one["budget"] for one in fit["classes"][name]["optima"]] == np.unique(
            runs.budget
        ).tolist()
        for one in fit["classes"][name]["optima"]:
            params, tokens = law.optimum(one["budget"] / 6)
            low, high = one["intervals"]["params"]
            assert low < params < high and low < one["params"] < high
            low, high = one["intervals"]["tokens"]
            assert low < tokens < high
            assert one["loss"] == pytest.approx(law.loss(params, tokens), rel=0.01)
    pairs = {(one["first"], one["second"]): one for one in fit["class_differences"]}
    assert len(pairs) == 3
    differ = pairs["text", "semantic"]
    expected = laws["text"].optimum(1e19 / 6)[0] / LAW.optimum(1e19 / 6)[0]
    assert differ["budget"] == pytest.approx(1e19)
    low, high = differ["intervals"]["params_ratio"]
    assert low < expected < high and low > 1
    # Equal losses have equal draws, because the weights of the runs are the same.
    assert pairs["semantic", "same"]["intervals"] == {
        "params_ratio": [1.0, 1.0],
        "a_difference": [0.0, 0.0],
    }
    printed = capsys.readouterr().out
    assert "optima of the classes" in printed
    assert any("text" in line and "differs" in line for line in printed.splitlines())


def test_draws_without_an_optimum_are_counted():
    weak = Surface(0.36, 0.40, 1.86, 0.004, 1.05)  # N hardly matters
    runs = planted(LAW)
    noise = 0.003 * np.random.default_rng(0).standard_normal(len(runs))
    runs = dataclasses.replace(runs, loss=weak.loss(runs.params, runs.tokens) + noise)
    found = fit_loss(runs, draw_weights(40, len(runs), 0))
    assert any("of 40 draws, which have no optimum" in line for line in found["warnings"])
    json.loads(to_text(found), parse_constant=pytest.fail)


def test_runs_far_above_the_best_of_their_budget_can_be_left_out(tmp_path):
    rows = rows_of(planted(LAWS[0]))
    table = write(tmp_path / "runs.csv", rows)
    everything, near = read_runs(table), read_runs(table, near_best=0.05)
    lowest = {b: everything.loss[everything.budget == b].min() for b in set(everything.budget)}
    expected = [
        x for x, b in zip(everything.loss, everything.budget, strict=True) if x <= lowest[b] + 0.05
    ]
    assert near.loss.tolist() == expected and 0 < len(expected) < len(everything)
    left = len(everything) - len(expected)
    assert near.notes[-1].startswith(f"{left} runs are more than 0.05 nats above the best")
    assert near.source["near_best"] == 0.05
