"""The tables of the toy study in docs/ agree with each other and with docs/scaling.md."""

import csv
import hashlib
import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "scaling_toy"


@pytest.fixture(scope="module")
def held_out():
    with (FOLDER / "held_out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row


@pytest.mark.parametrize("name", ["scaling_toy", "scaling_toy_2"])
def test_the_fit_is_that_of_the_results(name):
    fit = json.loads((DOCS / name / "fit.json").read_text())
    digest = hashlib.sha256((DOCS / name / "results.csv").read_bytes()).hexdigest()
    assert fit["table"]["sha256"] == digest


def test_the_page_has_the_prediction_of_the_second_study():
    (prediction,) = json.loads((DOCS / "scaling_toy_2" / "prediction.json").read_text())[
        "predictions"
    ]
    low, high = prediction["intervals"]["loss"]
    line = f"predicts {prediction['loss']:.3f} [{low:.3f} – {high:.3f}] nats"
    assert line in (DOCS / "scaling.md").read_text()


def test_the_page_has_the_predicted_and_the_measured_losses(held_out):
    (prediction,) = json.loads((FOLDER / "prediction.json").read_text())["predictions"]
    assert prediction["params"] == float(held_out["params_non_embedding"])
    assert prediction["tokens"] == float(held_out["tokens"])
    losses = {"all": (prediction["loss"], prediction["intervals"]["loss"], held_out["loss"])}
    for name, loss in prediction["classes"].items():
        interval = prediction["class_intervals"][name]
        losses[name.replace("_", " ")] = (loss, interval, held_out[f"loss/{name}"])
    page = (DOCS / "scaling.md").read_text()
    rows = re.findall(r"\| ([a-z]+ ?\d?) \| (\S+) \| (\S+) – (\S+) \| (\S+) \| (\S+)% \|", page)
    assert [row[0] for row in rows] == list(losses)
    for name, *cells in rows:
        predicted, (low, high), measured = losses[name]
        error = 100 * (predicted / float(measured) - 1)
        expected = [predicted, low, high, float(measured), error]
        found = [float(cell.replace("−", "-")) for cell in cells]
        assert found == pytest.approx(expected, abs=0.051) and found[:4] == pytest.approx(
            expected[:4], abs=5.1e-4
        )


def test_the_held_out_budget_is_ten_times_the_largest(held_out):
    with (FOLDER / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30 and {row["status"] for row in rows} == {"done"}
    largest = max(float(row["budget"]) for row in rows)
    assert float(held_out["budget"]) == pytest.approx(10 * largest)
    assert max(row["ended"] for row in rows) < held_out["started"]
