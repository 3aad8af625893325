"""Rank correlations of downstream scores with NLLs."""

import csv

import numpy as np
import pytest
from laws import write
from scipy.stats import spearmanr

from soda_jax import cli
from soda_jax.errors import UserError
from soda_jax.scaling.metrics import _spearman, correlations


def rows(runs=12):
    random = np.random.default_rng(0)
    loss = random.uniform(2, 4, runs)
    return [
        {"loss": x, "loss/text": 5 - x, "loss/semantic": noise, "wer": 10 * x**2, "flat": 1.0}
        for x, noise in zip(loss.tolist(), random.uniform(1, 2, runs).tolist(), strict=True)
    ]


def test_the_command_writes_one_row_for_each_score_and_nll(tmp_path, capsys):
    table, out = write(tmp_path / "runs.csv", rows()), tmp_path / "metrics.csv"
    options = ["--scores=wer,flat", f"--out={out}"]
    assert cli.main(["scaling", "metrics", table, *options]) == 0
    with open(out, newline="") as lines:
        found = {(row["score"], row["loss"]): row for row in csv.DictReader(lines)}
    assert len(found) == 6
    assert float(found["wer", "loss"]["spearman"]) == pytest.approx(1)
    assert float(found["wer", "loss/text"]["spearman"]) == pytest.approx(-1)
    expected = spearmanr([r["wer"] for r in rows()], [r["loss/semantic"] for r in rows()]).statistic
    one = found["wer", "loss/semantic"]
    assert float(one["spearman"]) == pytest.approx(expected) and one["n"] == "12"
    assert -1 <= float(one["low"]) < expected < float(one["high"]) <= 1
    assert found["flat", "loss"]["spearman"] == found["flat", "loss"]["low"] == ""
    assert "flat, loss: no correlation: a column is constant" in capsys.readouterr().out


def test_the_correlation_of_resamples_is_that_of_scipy():
    values = np.random.default_rng(0).integers(0, 5, (2, 20, 9)).astype(float)
    expected = [spearmanr(x, y).statistic for x, y in zip(*values, strict=True)]
    np.testing.assert_allclose(_spearman(*values), expected)


def test_the_interval_contains_the_correlation_of_the_population():
    random = np.random.default_rng(1)
    hits = 0
    for seed in range(40):
        x = random.standard_normal(40)
        y = 0.7 * x + np.sqrt(1 - 0.49) * random.standard_normal(40)
        from soda_jax.scaling.metrics import _correlation

        _, low, high = _correlation(np.stack([x, y]), 300, seed)
        hits += low <= 6 / np.pi * np.arcsin(0.35) <= high  # Spearman's ρ of a normal law
    assert hits >= 34


def test_cells_that_are_no_numbers_are_set_aside_by_name(tmp_path):
    table = rows()
    table[2]["wer"], table[4]["loss/text"] = "", "nan"
    found = correlations(write(tmp_path / "runs.csv", table), ["wer"], draws=0)
    assert {row["loss"]: row["n"] for row in found.rows} == {
        "loss": 11,
        "loss/text": 10,
        "loss/semantic": 11,
    }
    assert found.notes == (
        "row 3: wer is empty, so it is set aside",
        "row 5: loss/text is nan, so it is set aside",
    )


@pytest.mark.parametrize(
    ("scores", "losses", "runs", "message"),
    [
        (["cer"], [], 12, "--scores: .*runs.csv has no column cer, but loss,"),
        (["wer"], ["nll"], 12, "--losses: .*runs.csv has no column nll"),
        (["wer"], [], 2, "has 2 runs with a score and an NLL; a rank correlation needs at least 3"),
        ([], [], 12, "give columns of scores"),
    ],
)
def test_bad_input_is_named(tmp_path, scores, losses, runs, message):
    with pytest.raises(UserError, match=message):
        correlations(write(tmp_path / "runs.csv", rows(runs)), scores, losses)


def test_runs_that_are_not_finished_are_set_aside(tmp_path):
    table = [{**row, "status": "done", "vocabulary": 2310} for row in rows()]
    table[3] |= {"status": "failed", "vocabulary": "", "loss": "", "loss/text": ""}
    table[3]["loss/semantic"] = ""
    found = correlations(write(tmp_path / "results.csv", table), ["wer"], draws=0)
    assert {row["n"] for row in found.rows} == {11}
    assert "row 4: loss is empty, so it is set aside" in found.notes
    with pytest.raises(UserError, match="has 0 runs with a score and an NLL"):
        correlations(write(tmp_path / "results.csv", table), ["status"])


def test_equal_values_have_mean_ranks_and_few_runs_have_no_correlation(tmp_path):
    table = rows(5)
    for row, score in zip(table, (1, 1, 2, 2, 3), strict=True):
        row["score"] = score
    table[0]["loss/text"] = table[1]["loss/text"] = table[2]["loss/text"] = ""
    found = correlations(write(tmp_path / "runs.csv", table), ["score"], draws=200)
    by_loss = {row["loss"]: row for row in found.rows}
    expected = spearmanr([1, 1, 2, 2, 3], [row["loss"] for row in table]).statistic
    assert by_loss["loss"]["spearman"] == pytest.approx(expected)
    few = by_loss["loss/text"]
    assert (few["n"], few["spearman"], few["low"]) == (2, None, None)
    assert "score, loss/text: no correlation: 2 runs, 3 are needed" in found.notes


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, capsys):
    table = write(tmp_path / "runs.csv", rows())
    (tmp_path / "file").write_text("")
    for out, reason in (
        ("/proc/x/y.csv", "/proc cannot be written"),
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "x.csv", "file is a file"),
    ):
        assert cli.main(["scaling", "metrics", table, "--scores=wer", f"--out={out}"]) == 2
        text = capsys.readouterr().err
        assert f"--out={out}" in text and reason in text and text.count("\n") == 1


def test_mixed_normalizers_are_refused(tmp_path):
    table = [{**row, "normalizer": "legal" if i else "full"} for i, row in enumerate(rows())]
    file = write(tmp_path / "runs.csv", table)
    with pytest.raises(UserError, match="mixes 2 values of normalizer"):
        correlations(file, ["wer"])
    assert correlations(file, ["wer"], select={"normalizer": "legal"}).rows[0]["n"] == 11


def test_rows_without_values_have_no_vocabulary_to_compare(tmp_path):
    table = [{**row, "vocabulary": 100} for row in rows()]
    for name in table[3]:
        table[3][name] = ""
    file = write(tmp_path / "runs.csv", table)
    assert {row["n"] for row in correlations(file, ["wer"], draws=0).rows} == {11}
    table[4]["vocabulary"] = 200
    file = write(tmp_path / "runs.csv", table)
    with pytest.raises(UserError, match="mixes 2 values of vocabulary"):
        correlations(file, ["wer"], draws=0)


def test_a_missing_interval_is_explained(tmp_path):
    file = write(tmp_path / "runs.csv", rows(3))  # a ninth of the resamples draws one run only
    found = correlations(file, ["wer"], ["loss"], draws=1000)
    assert found.rows[0]["low"] is None and found.rows[0]["spearman"] is not None
    assert found.notes == (
        "wer, loss: no interval: a column is constant in more than 10% of the resamples",
    )
    assert correlations(file, ["wer"], ["loss"], draws=0).notes == ()
