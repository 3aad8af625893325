"""A store that fails as told, a data set in it, and what its batches are compared by."""

import time

import numpy as np
import pytest
from shaky import ShakyFileSystem as Store

from soda_jax.data.dataset import make_dataset
from soda_jax.data.loader import Loader
from soda_jax.data.manifest import Manifest
from soda_jax.data.shards import read_shard_info
from soda_jax.data.storage import remote

LENGTH = 64
SHARD, INDEX = "shard-00001.array_record", "shard-00001.index.npz"
URL = "shaky://data"


@pytest.fixture
def corpus(tmp_path, write, speech, monkeypatch):
    """A data set that is also `shaky://data`; waits between attempts are short."""
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.001)
    remote.shared.cache_clear()
    Store.start(tmp_path / "store")
    yield write(tmp_path / "store" / "data", speech())
    if Store.failures or Store.short or Store.flips:
        # Reads that were abandoned with an error are not to be counted by the next test.
        Store.start(tmp_path / "store")
        time.sleep(0.1)


@pytest.fixture
def settings(tmp_path):
    """settings(path, storage, …): the data part of a config."""

    def make(path=URL, storage="range", source=None, **more):
        place = {"path": str(path), "order": "both", **(source or {})}
        return {
            "sequence_length": LENGTH,
            "seed": 3,
            "sources": {"a": place},
            "storage": storage,
            "cache_dir": str(tmp_path / "cache"),
            **more,
        }

    return make


def batches(config, count=12, threads=4):
    """Batches of four rows from several threads, as one row of arrays a field."""
    with Loader(make_dataset(config), 4, prefetch=4, threads=threads) as loader:
        found = [next(loader) for _ in range(count)]
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def without_places(corpus):
    """Rewrites the indexes as version 1 had them, and the manifest with their checksums."""
    manifest, shards = Manifest.load(corpus), []
    for info in manifest.splits["train"]:
        index = corpus / "train" / info.file.replace(".array_record", ".index.npz")
        with np.load(index) as file:
            columns = {name: file[name] for name in file.files if name not in ("places", "version")}
        np.savez(index, version=np.array(1), **columns)
        shards.append(read_shard_info(corpus / "train" / info.file))
    (corpus / "manifests" / "0000.json").unlink()
    old = Manifest("speech", manifest.layout, manifest.codec, "bytes", {"train": tuple(shards)})
    old.save(corpus)
