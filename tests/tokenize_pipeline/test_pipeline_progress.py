"""Workers record their progress, and the job shows it and removes the files."""

import pytest
from pipeline_toys import make_corpus

from tokenize_pipeline import encoding, job, worker
from tokenize_pipeline.options import TokenizeOptions
from tokenize_pipeline.plan import ShardPlan
from tokenize_pipeline.results import read_progress, write_progress

SHARD = ShardPlan("train", 0, 4, 4, 100.0, "")


class Bar:
    def __init__(self):
        self.amounts = []

    def advance(self, amount, note=""):
        self.amounts.append(amount)


def test_a_worker_records_each_batch_and_no_file_is_left(tmp_path, toy_codec, monkeypatch):
    recorded = []

    def spy(folder, shard, part):
        write_progress(folder, shard, part)
        recorded.append((part, read_progress(folder, shard)))

    monkeypatch.setattr(worker, "write_progress", spy)
    monkeypatch.setattr(worker, "_PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(encoding, "BATCH_CLIPS", 2)
    source = make_corpus(tmp_path / "corpus")
    options = TokenizeOptions(
        source, str(tmp_path / "data"), codec="toy", validation_fraction=0.0, shards=1
    )
    job.tokenize(options)
    parts = [part for part, _ in recorded]
    # Nine batches and the end of the window; the weight of a shard is rounded.
    assert len(parts) == 10 and parts == sorted(parts)
    assert parts[-1] == parts[-2] == pytest.approx(1.0, abs=1e-3)
    assert all(read == pytest.approx(part, abs=1e-4) for part, read in recorded)
    assert not list((tmp_path / "data").rglob("*.progress"))


def test_the_bar_moves_within_a_shard_and_never_back(tmp_path):
    bar = Bar()
    update = job._progress_reader(tmp_path, [SHARD], bar)
    for part in (0.25, 0.5, 0.1, 7.0):
        write_progress(tmp_path, SHARD, part)
        update()
    assert bar.amounts == [25, 25, 0, 50]


def test_a_torn_progress_file_is_ignored(tmp_path):
    assert read_progress(tmp_path, SHARD) == 0.0
    write_progress(tmp_path, SHARD, 0.5)
    (path,) = tmp_path.rglob("*.progress")
    path.write_text("0.5x")
    assert read_progress(tmp_path, SHARD) == 0.0
