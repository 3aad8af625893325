"""Shards read by range give the batches of shards read in place, or one clear error."""

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path

import fsspec
import fsspec.asyn
import numpy as np
import pytest
from gcs import require_bucket
from shaky import ShakyFileSystem as Store
from storage_toys import (
    INDEX,
    SHARD,
    URL,
    assert_equal,
    batches,
    without_places,
)

from soda_jax.data.dataset import documents, make_dataset
from soda_jax.data.records import DamagedRecordError
from soda_jax.data.shards import read_index
from soda_jax.data.storage import remote
from soda_jax.data.storage.cache import ByteCache
from soda_jax.data.storage.remote import RemoteFiles, ShortReadError, StoreError, download_folder
from soda_jax.errors import UserError


@pytest.mark.parametrize("storage", ["range", "stage"])
def test_batches_equal_those_of_shards_in_place_bit_for_bit(corpus, settings, storage):
    expected = batches(settings(corpus, "direct"))
    assert_equal(batches(settings(URL, storage)), expected)
    # A file that is already right is not fetched again; of ranges only the indexes are kept.
    Store.asked.clear()
    assert_equal(batches(settings(URL, storage)), expected)
    again = {path for path in Store.asked if "index" in path or storage == "stage"}
    assert again <= {"data/manifest.json"}


@pytest.mark.parametrize("cache_bytes", [0, 500, 1 << 20])
def test_the_cache_changes_no_batch_and_keeps_its_bound(corpus, settings, cache_bytes):
    expected = batches(settings(corpus, "direct"))
    dataset = make_dataset(settings(cache_bytes=cache_bytes))
    for number in range(12):
        found = dataset.batch(4 * number, range(4))._asdict()
        for name, values in found.items():
            np.testing.assert_array_equal(values, expected[name][4 * number : 4 * number + 4])
        assert dataset.storage._ranges.cache.held_bytes <= cache_bytes


def test_a_record_that_is_kept_is_not_read_again(corpus, settings):
    dataset = make_dataset(settings())
    dataset.batch(0, range(4))
    Store.asked.clear()
    dataset.batch(0, range(4))
    assert not Store.asked


def test_the_cache_drops_what_was_unused_for_longest():
    cache = ByteCache(10)
    cache.put("a", b"1234")
    cache.put("b", b"1234")
    assert cache.get("a") == b"1234"
    cache.put("c", b"1234")
    assert cache.get("b") is None and cache.get("a") and cache.get("c")
    cache.put("a", b"12345678901")  # more than the cache holds
    assert cache.get("a") is None and cache.held_bytes <= 4


def test_wrong_bytes_in_the_cache_are_read_again_from_the_store(corpus, settings):
    dataset = make_dataset(settings())
    expected = dataset.batch(0, range(4))._asdict()
    cache = dataset.storage._ranges.cache
    for key in list(cache._held):
        cache.put(key, b"\0" + cache.get(key)[1:])
    assert_equal(dataset.batch(0, range(4))._asdict(), expected)


def test_an_index_without_places_is_read_by_range_too(corpus, settings):
    expected = batches(settings(corpus, "direct"))
    without_places(corpus)
    for storage, path in (("direct", corpus), ("stage", URL), ("range", URL)):
        assert_equal(batches(settings(path, storage)), expected)


def test_a_wrong_byte_in_a_footer_is_outlasted_too(corpus, settings):
    expected = batches(settings(corpus, "direct"))
    without_places(corpus)
    # The first read is of the postscript and the second of the footer with the places.
    for reads in (1, 2):
        dataset = make_dataset(settings(read_threads=1))
        Store.only, Store.flips = "array_record", reads
        found = [dataset.batch(4 * number, range(4)).tokens for number in range(3)]
        np.testing.assert_array_equal(np.concatenate(found), expected["tokens"][:12])


def test_the_reads_of_a_batch_go_out_together(corpus, settings):
    dataset = make_dataset(settings(read_threads=8, cache_bytes=0))
    dataset.batch(0, range(1))
    Store.seconds, Store.most_at_once = 0.05, 0
    Store.asked.clear()
    dataset.batch(100, range(16))
    reads = sum(Store.asked.values())
    assert reads > 10 and Store.most_at_once == 8
    # Once each, although the cache keeps nothing: the batch holds what it has asked for.
    Store.asked.clear()
    again = make_dataset(settings(cache_bytes=1 << 30))
    Store.asked.clear()
    again.batch(100, range(16))
    assert sum(Store.asked.values()) == reads


def test_whole_documents_come_by_range_too(corpus, settings):
    expected = list(documents(settings(corpus, "direct"), "train"))
    found = list(documents(settings(), "train"))
    assert [d.document_id for d in found] == [d.document_id for d in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(mine.utterances, theirs.utterances, strict=True):
            np.testing.assert_array_equal(a.codes, b.codes)
            assert a.text == b.text


def test_invariant_3_where_the_data_lies_does_not_count_in_the_digest(corpus, settings):
    digests = {
        make_dataset(settings(*where)).digest
        for where in ((corpus, "direct"), (URL, "stage"), (URL, "range"), (URL, "auto"))
    }
    assert len(digests) == 1


def test_auto_reads_paths_in_place_and_urls_by_range(corpus, settings):
    assert not make_dataset(settings(corpus, "auto")).sources[0].reads_ahead
    assert make_dataset(settings(URL, "auto")).sources[0].reads_ahead
    assert make_dataset(settings(f"file://{corpus}", "auto")).sources[0].reads_ahead


@pytest.mark.parametrize("storage", ["stage", "range"])
@pytest.mark.parametrize("fault", ["failures", "short", "flips"])
def test_faults_that_pass_are_outlasted(corpus, settings, storage, fault, caplog):
    expected = batches(settings(corpus, "direct"))
    Store.only, Store.error = "array_record", TimeoutError("deadline exceeded")
    # Of a wrong byte one more reading is made, past the cache.
    setattr(Store, fault, 1 if fault == "flips" else 5)
    with caplog.at_level(logging.WARNING):
        assert_equal(batches(settings(URL, storage)), expected)
    assert getattr(Store, fault) == 0
    told = [line for line in caplog.messages if "will be repeated" in line]
    assert len(told) == (0 if fault == "flips" else 1)


@pytest.mark.parametrize("storage", ["stage", "range"])
@pytest.mark.parametrize("damaged", ["fatal", "mask"])
def test_a_store_that_stays_away_is_an_error_whatever_the_policy(
    corpus, settings, storage, damaged
):
    Store.only, Store.failures = SHARD, 1 << 30
    config = settings(storage=storage, damaged=damaged, retries=3)
    message = rf"shaky://data/train/{SHARD}, bytes \d+ to \d+: .*4 attempts.*connection reset"
    with pytest.raises(StoreError, match=message):
        batches(config, 40)
    assert Store.asked[f"data/train/{SHARD}"] >= 4


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "another shard"])
def test_damage_that_stays_is_named_with_url_and_record_and_can_be_masked(corpus, settings, damage):
    path = corpus / "train" / SHARD
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:100])
    elif damage == "another shard":
        path.write_bytes((corpus / "train" / "shard-00000.array_record").read_bytes())
    else:
        Store.only, Store.flips = SHARD, 1 << 30
    config = settings(retries=2)
    message = rf"shaky://data/train/{SHARD}, record \d+ is damaged: .*restore the shard"
    with pytest.raises(DamagedRecordError, match=message):
        batches(config, 40)
    asked = Store.asked[f"data/train/{SHARD}"]
    masked = make_dataset({**config, "damaged": "mask"}, one_pass=True)
    masks = [masked.window(k).loss_mask for k in range(masked.windows)]
    assert 0 < np.mean(masks) < 1 and masked.damage()
    if damage in ("missing", "truncated"):  # a store that says no is not asked again for a record
        assert asked <= len(read_index(corpus / "train" / INDEX).flags)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"storage": "direct"}, r"shaky://data is a URL .*range .*stage.*mount"),
        ({"storage": "stage", "cache_dir": ""}, "data.cache_dir"),
        ({"storage": "rang"}, "data.storage is 'rang': one of auto, direct, stage, range"),
        ({"cache_bytes": -1}, "data.cache_bytes is -1"),
        ({"read_threads": 0}, "data.read_threads is 0"),
        ({"retries": "many"}, "data.retries is 'many'"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_mend(corpus, settings, change, message):
    with pytest.raises(UserError, match=message):
        make_dataset({**settings(), **change})


@pytest.mark.parametrize(
    "url,message",
    [
        ("shaky://nowhere", "shaky://nowhere/manifest.json: cannot read the manifest"),
        ("nosuch://data", "nosuch://data/manifest.json: Protocol not known"),
    ],
)
def test_a_url_that_leads_nowhere_is_named(corpus, settings, url, message):
    with pytest.raises(UserError, match=message):
        make_dataset(settings(url))


def test_a_refusal_is_told_at_once(corpus, settings):
    Store.error, Store.failures, Store.only = PermissionError("no access"), 99, "manifest"
    with pytest.raises(UserError, match=r"shaky://data/manifest.json: PermissionError: no access"):
        make_dataset(settings())
    assert Store.asked["data/manifest.json"] == 1


class Hanging(fsspec.asyn.AsyncFileSystem):
    """An asynchronous file system whose first reads never end."""

    protocol = "hanging"
    left = 2

    async def _cat_file(self, path, start=None, end=None, **_):
        if Hanging.left:
            Hanging.left -= 1
            await asyncio.sleep(3600)
        return b"x" * (end - start)


def test_a_read_that_hangs_is_given_up_and_repeated(corpus, monkeypatch):
    fsspec.register_implementation("hanging", Hanging, clobber=True)
    monkeypatch.setattr(remote, "_TIMEOUT_SECONDS", 0.1)
    Hanging.left = 2
    files = RemoteFiles(3)
    assert files.read("hanging://a", 0, 4) == b"xxxx" and files.failures == 2


def test_waits_between_attempts_double_up_to_a_bound_and_differ(corpus, monkeypatch):
    waits = []
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    Store.failures = 1 << 30
    with pytest.raises(StoreError, match="9 attempts"):
        RemoteFiles(8).read("shaky://data/manifest.json", 0, 9)
    waits = [wait for wait in waits if wait]  # the store itself sleeps for 0 seconds
    middles = [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert all(0.5 <= w / m <= 1.5 for w, m in zip(waits, middles, strict=True))
    assert len({w / m for w, m in zip(waits, middles, strict=True)}) == len(waits)


def test_tokenizer_and_codec_come_from_the_url(corpus, tmp_path):
    (corpus / "codec" / "deep").mkdir(parents=True)
    (corpus / "codec" / "codec.json").write_text("{}")
    (corpus / "codec" / "deep" / "weights").write_bytes(b"\1\2")
    assert download_folder(f"{URL}/codec", tmp_path / "codec")
    assert (tmp_path / "codec" / "deep" / "weights").read_bytes() == b"\1\2"
    assert not download_folder(f"{URL}/tokenizer", tmp_path / "tokenizer")


def test_a_program_that_fails_does_not_wait_for_reads_under_way(corpus, settings):
    program = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from shaky import ShakyFileSystem as Store\n"
        "Store.start(Path(sys.argv[2]))\n"
        "from soda_jax.data.dataset import make_dataset\n"
        "made = make_dataset(json.loads(sys.argv[3]))\n"
        "Store.seconds = 3600\n"
        "made.sources[0].ahead(0, 500)"
    )
    arguments = [str(Path(__file__).parent), str(Store.root), json.dumps(settings())]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=60)


@pytest.mark.parametrize("storage", ["range", "stage"])
def test_batches_from_a_bucket_equal_those_of_shards_in_place(corpus, settings, storage):
    bucket = require_bucket()
    system, _ = fsspec.core.url_to_fs(bucket)
    folder = f"{bucket}/{corpus.parents[1].name}"
    for path in corpus.rglob("*"):
        if path.is_file():
            system.pipe_file(f"{folder}/{path.relative_to(corpus)}", path.read_bytes())
    expected = batches(settings(corpus, "direct"))
    assert_equal(batches(settings(folder, storage)), expected)
    with pytest.raises(ShortReadError, match="bytes 900000 to 900009 are wanted and it has"):
        RemoteFiles().read(f"{folder}/train/{SHARD}", 900_000, 900_009)
    with pytest.raises(UserError, match=r"gs://bucket/nowhere/manifest.json: cannot read"):
        make_dataset(settings("gs://bucket/nowhere", storage))
