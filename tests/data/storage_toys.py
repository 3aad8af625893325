"""A small data set in the bucket of this process, and helpers to compare its batches."""

import numpy as np
import pytest
from gcs import FAULTS, start_server, upload

from soda_jax.data.dataset import make_dataset
from soda_jax.data.loader import Loader
from soda_jax.data.storage import remote

LENGTH = 64
SHARD, INDEX = "shard-00001.array_record", "shard-00001.index.npz"
URL = "gs://bucket/data"


@pytest.fixture
def corpus(tmp_path, write, speech, monkeypatch):
    """The folder of a data set that is also at `URL`; waits between attempts are short."""
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.001)
    remote.shared.cache_clear()
    start_server()
    FAULTS.reset()
    folder = write(tmp_path / "store" / "data", speech())
    upload(folder, "data")
    yield folder
    FAULTS.reset()


@pytest.fixture
def settings(tmp_path):
    """settings(path, storage, …): the data part of a config."""

    def make(path=URL, storage="range", source=None, **more):
        return {
            "sequence_length": LENGTH,
            "seed": 3,
            "sources": {"a": {"path": str(path), "order": "both", **(source or {})}},
            "storage": storage,
            "cache_dir": str(tmp_path / "cache"),
            **more,
        }

    return make


def batches(config, count=12, threads=4):
    """Returns the rows of `count` batches of four windows, read by several threads."""
    with Loader(make_dataset(config), 4, prefetch=4, threads=threads) as loader:
        found = [next(loader) for _ in range(count)]
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


def assert_equal(found, expected):
    """Compares the arrays of two batches."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
