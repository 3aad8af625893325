"""Windows of the validation splits."""

import numpy as np
import pytest

from soda_jax.errors import UserError
from soda_jax.evaluate.windows import open_windows


def targets(windows, **options):
    return [int(b["loss_mask"].sum()) for b in windows.batches(4, **options)]


def test_every_whole_window_is_read_once(config):
    windows = open_windows(config)
    assert windows.source_names == ("speech", "text")
    assert sum(targets(windows)) == sum(
        (d.windows or 0) * (d.sequence_length - 1) for d in windows.datasets.values()
    )
    sources = [b["source"].tolist() for b in windows.batches(4)]
    assert all(len(set(row)) == 1 for row in sources)
    assert {row[0] for row in sources} == {0, 1}


def test_a_source_shorter_than_a_window_is_one_window_of_its_length(config, write, tmp_path):
    write(tmp_path / "short", "text", validation=1, seed=3)
    config["sources"]["text"]["path"] = str(tmp_path / "short")
    windows = open_windows({**config, "sequence_length": 64})
    short = windows.datasets[1]
    assert (short.windows, short.sequence_length) == (1, short.sources[0].tokens)
    assert short.sequence_length < 64 == windows.datasets[0].sequence_length


def test_a_source_without_validation_split_does_not_affect_the_others(config, write, tmp_path):
    write(tmp_path / "none", validation=0)
    config["sources"]["speech"]["path"] = str(tmp_path / "none")
    windows = open_windows(config)
    assert windows.left_out == ("speech",)
    assert {int(b["source"][0]) for b in windows.batches(4)} == {1}


def test_no_source_with_a_validation_split_is_an_error(config, write, tmp_path):
    write(tmp_path / "none", validation=0)
    sources = {"speech": {"path": str(tmp_path / "none")}}
    with pytest.raises(UserError, match="validation_fraction"):
        open_windows({**config, "sources": sources})


def test_with_a_limit_every_source_is_read(config):
    windows = open_windows({**config, "sequence_length": 8})
    batches = list(windows.batches(4, limit=1))
    assert {int(b["source"][0]) for b in batches} == {0, 1}
    assert len(batches) == windows.batch_count(4, limit=1) < windows.batch_count(4)


def test_rows_of_a_process_are_those_of_the_whole_batch(config):
    windows = open_windows(config)
    for whole, part in zip(windows.batches(4), windows.batches(4, rows=[1, 3]), strict=True):
        np.testing.assert_array_equal(whole["tokens"][[1, 3]], part["tokens"])


def test_masks_of_training_records_do_not_apply_to_validation(config, tmp_path):
    (tmp_path / "masked.txt").write_text("shard-00000.array_record 15\n")
    config["sources"]["speech"]["mask_records"] = str(tmp_path / "masked.txt")
    assert sum(targets(open_windows(config))) > 0
