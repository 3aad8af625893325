"""The metrics file: each step once, whatever killed the run before."""

import json
import math

from soda_jax.train.metric_logs import MetricsLog, read_metrics


def write(workdir, start, steps, tensorboard=False, value=1.0):
    log = MetricsLog(workdir, start, tensorboard)
    for step in steps:
        log.write(step, {"loss": value * step})
    log.close()


def test_repeated_steps_replace_the_old_ones(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4])
    write(tmp_path, 2, [3, 4, 5], value=10.0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [
        (1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)
    ]  # fmt: skip


def test_an_incomplete_last_line_is_skipped_and_removed(tmp_path):
    write(tmp_path, 0, [1, 2])
    file = tmp_path / "metrics.jsonl"
    with file.open("a") as end:
        end.write('{"step": 3, "lo')
    assert [row["step"] for row in read_metrics(file)] == [1, 2]
    write(tmp_path, 2, [3])
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]


def test_values_that_are_not_finite_become_null(tmp_path):
    log = MetricsLog(tmp_path, 0, False)
    log.write(1, {"a": math.nan, "b": math.inf, "c": 0.5})
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "a": None, "b": None, "c": 0.5}]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_tensorboard_mirrors_the_metrics(tmp_path):
    write(tmp_path, 0, [1, 2], tensorboard=True)
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    assert b"loss" in events.read_bytes()


def test_no_file_means_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
