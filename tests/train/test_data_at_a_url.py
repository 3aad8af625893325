"""A run on the URLs of data sets equals the run on their local paths."""

import json

import pytest
from run_toys import Watcher, rows_of, terminate

from soda_jax.checkpoints import CheckpointReader
from soda_jax.train.loop import DONE, PREEMPTED, train


@pytest.mark.parametrize("storage", ["auto", "stage"])
def test_a_run_on_urls_repeats_the_run_on_paths_and_may_change_over(
    tmp_path, config, whole, datasets, storage
):
    urls = {f"data__sources__{n}__path": f"file://{datasets}/{n}" for n in ("speech", "text")}
    cache = {"data__storage": storage, "data__cache_dir": str(tmp_path / "cache")}
    stop = Watcher(at=3, action=terminate)
    assert train(config(**urls, **cache), tmp_path / "run", hooks=[stop]) == PREEMPTED
    metadata = CheckpointReader(tmp_path / "run" / "checkpoints").metadata(3)
    assert metadata["data"]["sources"]["speech"]["path"] == f"file://{datasets}/speech"
    copied = tmp_path / "run" / "tokenizer"
    stored = datasets / "speech" / "tokenizer"
    assert sorted(path.name for path in copied.iterdir()) == sorted(
        p.name for p in stored.iterdir()
    )
    for path in stored.iterdir():
        assert (copied / path.name).read_bytes() == path.read_bytes()
    # The rest from the local path: a resumed run accepts another location of the data.
    assert train(config(), tmp_path / "run") == DONE
    rows, expected = rows_of(tmp_path / "run"), rows_of(whole[0])
    assert [row["loss/all"] for row in rows] == [row["loss/all"] for row in expected]
    digests = [
        json.loads((folder / "data.json").read_text())["digest"]
        for folder in (tmp_path / "run", whole[0])
    ]
    assert digests[0] == digests[1]
