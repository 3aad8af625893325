"""Checkpoints elsewhere than in the workdir: another folder, or a bucket."""

import pytest
from gcs import require_bucket
from run_toys import Watcher, rows_of, terminate

from soda_jax.errors import UserError
from soda_jax.generate.checkpoint import load_decoder
from soda_jax.train.loop import DONE, PREEMPTED, train


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_run_resumes_in_a_new_workdir_from_a_shared_checkpoint_folder(
    tmp_path, config, whole, where
):
    kept_folder = tmp_path / "kept"
    directory = (
        str(kept_folder) if where == "folder" else f"{require_bucket()}/{tmp_path.name}/kept"
    )
    first, second = tmp_path / "first", tmp_path / "second"
    asked = config(checkpoint__directory=directory)
    stop = Watcher(at=4, action=terminate)
    assert train(asked, first, hooks=[stop]) == PREEMPTED
    assert not (first / "checkpoints").exists()
    assert load_decoder(first).step == 4
    # The machine of the first part is gone, with its disk.
    assert train(asked, second) == DONE
    rows = [*rows_of(first), *rows_of(second)]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss/all"] for row in rows] == [row["loss/all"] for row in rows_of(whole[0])]
    assert load_decoder(second).step == 6


def test_a_workdir_that_is_a_url_is_refused_before_anything_is_made(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"config\.checkpoint\.directory=gs://b/run/checkpoints"):
        train(config(), "gs://b/run")
    with pytest.raises(UserError, match="gs://b/run: the workdir"):
        load_decoder("gs://b/run")
    assert not list(tmp_path.iterdir())
